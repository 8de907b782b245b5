"""The folder of a run: one writer, contents compared instead of paths, leftovers of killed programs."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from flax import nnx

from idgenrec_jax import run_files
from idgenrec_jax import workdir as workdir_module
from idgenrec_jax.config import Config
from idgenrec_jax.data.sample import load_sample, sample_tokenizer
from idgenrec_jax.data.text import Tokenizer
from idgenrec_jax.data.tokenizer_training import train_tokenizer
from idgenrec_jax.errors import InputError
from idgenrec_jax.experiment import described_ranks, examples_table, train
from idgenrec_jax.files import write_json
from idgenrec_jax.models.create import random_config
from idgenrec_jax.models.huggingface import save_t5
from idgenrec_jax.models.t5 import T5, T5Config
from idgenrec_jax.presets import preset
from idgenrec_jax.workdir import RunLock, claim, described_results, described_run, trained_tokenizer

TEXT_TOKENS = [[number, 1] for number in range(len(load_sample().items))]
ROOT = Path(__file__).resolve().parents[1]


def claim_with(folder, *, tokenizer=None, models=None, **overrides):
    """Claim `folder` for a run on the sample; `data__prompts=FILE` overrides `data.prompts`."""
    config = preset("sample").override({name.replace("__", "."): value for name, value in overrides.items()})
    tokenizer = tokenizer or sample_tokenizer()
    models = models or {
        name: random_config(getattr(config, name), tokenizer) for name in ("recommender", "id_generator")
    }
    claim(folder, config, load_sample(), tokenizer, text_tokens=TEXT_TOKENS, models=models)


# ---- One writer ----

HOLD = """
import sys, time
from pathlib import Path
from idgenrec_jax.workdir import RunLock
RunLock(Path(sys.argv[1])).take()
print("held", flush=True)
time.sleep(100)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that trains in tmp_path/run."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(ROOT)}) as process:
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()


@pytest.mark.slow
def test_a_second_writer_is_told_who_is_the_first_until_it_is_killed(holder, tmp_path):
    with pytest.raises(InputError) as caught:
        RunLock(tmp_path / "run").take()
    host = os.uname().nodename
    assert str(caught.value).startswith(f"{tmp_path}/run: process {holder.pid} on {host} since 20")
    assert "trains this run; wait for it or stop it, or name another --workdir" in str(caught.value)
    holder.kill()
    holder.wait()
    lock = RunLock(tmp_path / "run")
    lock.take()
    assert f"process {os.getpid()} on" in (tmp_path / "run" / run_files.LOCK).read_text()
    lock.release()


def test_within_one_process_there_is_one_writer_as_well(tmp_path):
    first, second = RunLock(tmp_path / "run"), RunLock(tmp_path / "run")
    first.take()
    first.take()
    with pytest.raises(InputError, match=f"process {os.getpid()} on"):
        second.take()
    first.release()
    second.take()
    second.release()


def test_a_training_that_cannot_have_its_folder_says_so_before_it_loads_anything(tmp_path):
    lock = RunLock(tmp_path)
    lock.take()
    nowhere = preset("sample").override({"data.path": str(tmp_path / "nowhere")})
    with pytest.raises(InputError, match="trains this run"):
        train(nowhere, tmp_path)
    lock.release()
    with pytest.raises(InputError, match="nowhere: no such folder"):
        train(nowhere, tmp_path)
    # The failed one holds it no longer.
    lock.take()
    lock.release()


def test_a_training_with_an_unknown_loss_leaves_no_folder_that_refuses_the_right_one(tmp_path):
    with pytest.raises(InputError, match="--config.training.softmax: found 'vocabluary', .*nearest: vocabulary"):
        train(preset("sample").override({"training.softmax": "vocabluary"}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_file_system_without_locks_is_warned_about_and_one_that_cannot_be_written_to_refused(
    tmp_path, monkeypatch, caplog
):
    def refuse(path, *, wait):
        raise OSError(workdir_module.NO_LOCKS[0], "No locks available")

    monkeypatch.setattr(workdir_module, "lock_file", refuse)
    lock = RunLock(tmp_path / "run")
    lock.take()
    lock.release()
    assert "no locks (No locks available); see to it that no other process trains in this folder" in caplog.text
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file/run/lock: cannot be written"):
        RunLock(tmp_path / "file" / "run").take()


# ---- Contents instead of paths ----


def t5_folder(folder, seed):
    """A minute T5 with random weights and the sample's tokenizer."""
    tokenizer = sample_tokenizer()
    size = -(-tokenizer.size // 128) * 128
    config = T5Config(
        vocab_size=size, d_model=8, d_kv=4, d_ff=16, num_layers=1, num_decoder_layers=1, num_heads=2,
        pad_token_id=tokenizer.pad_id, eos_token_id=tokenizer.eos_id, decoder_start_token_id=tokenizer.pad_id,
    )  # fmt: skip
    save_t5(T5(config, rngs=nnx.Rngs(seed)), folder)
    return config


def test_the_same_contents_under_other_paths_are_the_same_run_and_others_are_not(tmp_path):
    folders = {name: tmp_path / name for name in ("weights", "moved_weights", "other_weights")}
    shape = t5_folder(folders["weights"], 0)
    shutil.copytree(folders["weights"], folders["moved_weights"])
    t5_folder(folders["other_weights"], 1)
    (tmp_path / "prompts.txt").write_text("sequential; seen; {history}; {target}\n")
    shutil.copyfile(tmp_path / "prompts.txt", tmp_path / "moved.txt")
    (tmp_path / "other.txt").write_text("sequential; seen; after {history}; {target}\n")
    models = {"recommender": shape, "id_generator": random_config(preset("sample").id_generator, sample_tokenizer())}
    run = tmp_path / "run"

    def again(weights, prompts):
        given = {"recommender__folder": str(folders[weights]), "data__prompts": str(tmp_path / prompts)}
        claim_with(run, models=models, **given)

    again("weights", "prompts.txt")
    again("moved_weights", "moved.txt")
    kept = described_run(run)["config"]
    assert kept["recommender"]["folder"] == str(folders["moved_weights"]), "the paths are kept as they are now"
    assert kept["data"]["prompts"] == str(tmp_path / "moved.txt")
    with pytest.raises(InputError, match="made with other weights, now --config.recommender.folder=.*/other_weights"):
        again("other_weights", "moved.txt")
    with pytest.raises(InputError, match="made with other data, tokenizer, prompts or IDs .*--config.data.prompts"):
        again("weights", "other.txt")
    assert described_run(run)["config"] == kept


@pytest.mark.parametrize(
    ("name", "stopped", "told"), [("ids.fallback", "error", "suffix"), ("evaluation.trie_layout", "dense", "csr")]
)
def test_what_a_run_is_told_to_change_where_it_stops_may_be_changed_and_is_kept_as_it_is_now(
    tmp_path, name, stopped, told
):
    section, field = name.split(".")
    for value in (stopped, told):
        claim_with(tmp_path / "run", **{f"{section}__{field}": value})
        assert described_run(tmp_path / "run")["config"][section][field] == value
    with pytest.raises(InputError, match="made with --config.ids.num_groups=1, now it is 9"):
        claim_with(tmp_path / "run", **{f"{section}__{field}": told, "ids__num_groups": 9})


def test_a_change_anywhere_in_large_weights_is_noticed_by_its_size_or_by_a_piece(tmp_path, monkeypatch):
    monkeypatch.setattr(workdir_module, "_PIECES", 4)
    monkeypatch.setattr(workdir_module, "_PIECE_BYTES", 100)
    content = bytearray(os.urandom(10_000))

    def digest():
        (tmp_path / "model.safetensors").write_bytes(content)
        return workdir_module._weights_digest(str(tmp_path), "recommender")

    whole = digest()
    assert digest() == whole
    content[5050] ^= 1
    changed = digest()
    content.append(0)
    assert len({whole, changed, digest()}) == 3
    assert workdir_module._weights_digest("", "recommender") == ""


def test_another_tokenizer_is_noticed_even_where_it_reads_the_items_alike(tmp_path):
    claim_with(tmp_path / "run")
    sample_tokenizer().save(tmp_path / "other")
    stored = json.loads((tmp_path / "other" / "tokenizer.json").read_text())
    stored["added_tokens"].append(stored["added_tokens"][0] | {"id": sample_tokenizer().size, "content": "<new>"})
    write_json(tmp_path / "other" / "tokenizer.json", stored)
    other = type(sample_tokenizer()).load(tmp_path / "other")
    with pytest.raises(InputError, match="made with another tokenizer; .*--config.data.tokenizer"):
        claim_with(tmp_path / "run", tokenizer=other)


def test_a_run_goes_on_with_the_tokenizer_that_it_has_trained(tmp_path):
    """Told apart here by its texts, as another version of the trainer would make another one."""

    def train(texts):
        return Tokenizer.from_json(train_tokenizer(texts, 600).to_str())

    made = train(["an older trainer"])
    own = Config().override({"data.path": str(tmp_path)})
    assert trained_tokenizer(tmp_path / "run", own) is None
    claim_with(tmp_path / "run", tokenizer=made, data__path=str(tmp_path))
    for name, is_own in (("", True), ("train", True), ("train:8000", True), ("train:600", False), ("folder", False)):
        found = trained_tokenizer(tmp_path / "run", own.override({"data.tokenizer": name}))
        assert found.equals(made) if is_own else found is None
    assert trained_tokenizer(tmp_path / "run", Config()) is None, "the sample has its own"


def test_a_run_of_an_earlier_version_goes_on(tmp_path):
    """Its config.json has neither a digest of weights nor JAX's switches."""
    claim_with(tmp_path / "run")
    described = described_run(tmp_path / "run")
    del described["data"]["weights"], described["switches"]
    write_json(tmp_path / "run" / run_files.CONFIG, described)
    claim_with(tmp_path / "run")
    described["switches"] = {"jax_threefry_partitionable": False}
    write_json(tmp_path / "run" / run_files.CONFIG, described)
    with pytest.raises(InputError, match="made with JAX_THREEFRY_PARTITIONABLE=False, now it is True; set it as"):
        claim_with(tmp_path / "run")


# ---- Leftovers, and files edited by hand ----


def test_leftovers_of_killed_programs_go_and_what_a_living_one_writes_stays(tmp_path, holder_of):
    run = tmp_path / "run"
    claim_with(run)
    (run / run_files.IDS).mkdir()
    checkpoint = run / "checkpoints" / "latest" / "7.orbax-checkpoint-tmp"
    dead = [run / ".export.99999.tmp", run / ".out.99999-0123abcd.tmp", checkpoint]
    for folder in dead:
        (folder / "recommender").mkdir(parents=True)
    for file in (run / ".results.json.99999.tmp", run / "ids" / ".round_0.jsonl.99999-0123abcd.tmp"):
        file.touch()
        dead.append(file)
    (run / ".editor.tmp").touch()
    alive = holder_of(run / "ids" / f".round_1.jsonl.{os.getpid()}-0123abcd.tmp")
    claim_with(run)
    assert not [path for path in dead if path.exists()]
    assert alive.exists() and (run / ".editor.tmp").exists()


@pytest.fixture
def holder_of():
    """Makes files that are being written, as `atomic_writer` holds them."""
    descriptors = []

    def make(path):
        descriptors.append(workdir_module.lock_file(path, wait=False))
        return path

    yield make
    for descriptor in descriptors:
        os.close(descriptor)


def with_model(run, fields):
    return run | {"models": {name: model | fields for name, model in run["models"].items()}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda run: [], "expected an object, found list"),
        (lambda run: run | {"config": 3}, "config is 3, expected dict"),
        (lambda run: {name: run[name] for name in run if name != "data"}, "data is None, expected dict"),
        (lambda run: run | {"data": run["data"] | {"name": 5}}, "data.name is 5, expected str"),
        (lambda run: run | {"models": {"recommender": run["models"]["recommender"]}}, "models.id_generator is None"),
        (lambda run: run | {"models": dict.fromkeys(run["models"], {"d_model": 8})}, "models.recommender: .*missing"),
        (lambda run: run | {"config": run["config"] | {"training": 3}}, "config.training is 3, expected dict"),
        (lambda run: run | {"switches": 3}, "switches is 3, expected dict"),
        (lambda run: run | {"data": run["data"] | {"weights": [1]}}, r"data.weights is \[1\], expected dict"),
        (lambda run: run | {"packages": None}, "packages is None, expected dict"),
        (lambda run: with_model(run, {"width": 8}), "models.recommender: .*'width'"),
    ],
)
def test_an_edited_description_is_one_line(tmp_path, change, message):
    claim_with(tmp_path)
    write_json(tmp_path / run_files.CONFIG, change(described_run(tmp_path)))
    with pytest.raises(InputError, match=f"^{tmp_path}/config.json: {message}") as caught:
        described_run(tmp_path)
    assert "\n" not in str(caught.value) and "train again" in str(caught.value)


METRICS = {"hr@10": 0.5, "ndcg@10": 0.25}
RESULTS = {
    "validation": METRICS,
    "test": METRICS,
    "popularity": {"validation": METRICS, "test": METRICS},
    "selected": {"step": 3},
    "seconds": 1,
    "example_ids": [{"item": "a", "id": "one", "text": "title: x"}],
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"test": 3}, "test is 3, expected dict"),
        ({"test": METRICS | {"hr@10": "half"}}, "test.hr@10 is 'half', expected int or float"),
        ({"popularity": {"validation": METRICS}}, "popularity.test is None, expected dict"),
        ({"selected": {"step": True}}, "selected.step is True, expected int"),
        ({"seconds": "1"}, "seconds is '1', expected int or float"),
        ({"example_ids": [{"id": "one"}]}, "example_ids has {'id': 'one'}, expected objects with id and text"),
    ],
)
def test_edited_results_are_one_line(tmp_path, change, message):
    write_json(tmp_path / run_files.RESULTS, RESULTS)
    assert described_results(tmp_path) == RESULTS
    write_json(tmp_path / run_files.RESULTS, RESULTS | change)
    with pytest.raises(InputError, match=f"^{tmp_path}/results.json: {re.escape(message)}; restore the file"):
        described_results(tmp_path)


def test_edited_results_without_examples_are_printed(tmp_path):
    write_json(tmp_path / run_files.RESULTS, RESULTS | {"example_ids": []})
    assert examples_table(described_results(tmp_path)["example_ids"]) == ""


def test_models_of_another_shape_are_refused(tmp_path):
    claim_with(tmp_path)
    models = {name: T5Config(**values) for name, values in described_run(tmp_path)["models"].items()}
    models["recommender"] = dataclasses.replace(models["recommender"], d_ff=8)
    with pytest.raises(InputError, match="made with other weights"):
        claim_with(tmp_path, models=models)


def test_ranks_are_described_with_a_list_of_users_for_each_split_that_has_others():
    sample = load_sample()
    ranks = {"validation": [3, -1], "test": [0, 1]}
    few = dataclasses.replace(sample, users=sample.users[:2], sequences=sample.sequences[:2])
    assert described_ranks(few, ranks) == {"users": list(few.users), **ranks}
    # One validation and two test targets of the first user, one of each of the second.
    first, second = map(len, few.sequences)
    ends = np.asarray([(first - 3, first - 2), (second - 2, second - 1)], np.int32)
    several = dataclasses.replace(few, boundaries=ends)
    ranks["test"].append(5)
    one, two = few.users
    assert described_ranks(several, ranks) == {"users": {"validation": [one, two], "test": [one, one, two]}, **ranks}
