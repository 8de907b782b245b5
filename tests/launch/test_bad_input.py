"""What a user can get wrong: each is one line that names the place and the way out, exit code 2, no traceback.

The first half runs the program; the second calls what the program calls, within its guard, to save process starts.
"""

import errno
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from program_runs import TINY, the_error, write_data

from idgenrec_jax.data.dataset import load_dataset
from idgenrec_jax.data.prompts import PromptTokens
from idgenrec_jax.data.recommender_batches import recommender_epoch, training_shape
from idgenrec_jax.data.renderer import PromptRenderer
from idgenrec_jax.data.templates import default_templates
from idgenrec_jax.data.text import Tokenizer
from idgenrec_jax.experiment import assemble, train
from idgenrec_jax.ids.table import load_table
from idgenrec_jax.inputs import load_prompts
from idgenrec_jax.launch.command_line import _guarded
from idgenrec_jax.models.huggingface import resolve_folder, save_t5
from idgenrec_jax.models.t5 import T5, T5Config
from idgenrec_jax.presets import preset
from idgenrec_jax.workdir import described_run


@pytest.fixture
def data(tmp_path):
    """A data folder of its own, to be spoilt."""
    return write_data(tmp_path / "shop")


@pytest.fixture
def configuration(programs, data):
    """Makes the minute configuration on the spoilt data; `training__rounds=1` overrides `training.rounds`."""

    def make(**overrides):
        values = TINY | {"data.path": str(data), "data.tokenizer": str(programs.tokenizer)}
        return preset("tiny").override(values | {name.replace("__", "."): value for name, value in overrides.items()})

    return make


@pytest.fixture
def error_of(capsys):
    """Runs a function as the programs run their `main`, and returns its one error line."""

    def run(function, *arguments):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            _guarded(lambda: function(*arguments), [])
        assert stopped.value.code == 2
        errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1, errors
        return errors[0]

    return run


def small_t5(folder, vocab_size):
    """Saves a minute T5 with random weights and `vocab_size` rows in its table."""
    config = T5Config(
        vocab_size=vocab_size, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_decoder_layers=1, num_heads=2
    )
    save_t5(T5(config, rngs=nnx.Rngs(0)), folder)
    return folder


# ---- The program itself ----


@pytest.mark.slow
def test_a_missing_folder(programs, tmp_path):
    result = programs.run("train", f"--workdir={tmp_path}/run", "--data=no/such/folder")
    error = the_error(result)
    assert "no/such/folder: no such folder" in error and "--data=sample" in error
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_an_unknown_item_in_a_sequence(programs, tmp_path):
    data = write_data(tmp_path / "shop")
    lines = (data / "user_sequence.txt").read_text().splitlines()
    lines[6] += " item999"
    (data / "user_sequence.txt").write_text("\n".join(lines))
    error = the_error(programs.run("train", f"--data={data}", f"--config.data.tokenizer={programs.tokenizer}"))
    assert f"{data}/user_sequence.txt:7: item item999 in the sequence of user user6" in error and "describe it" in error


@pytest.mark.slow
def test_a_name_that_the_hub_cannot_give_offline(programs, tmp_path):
    error = the_error(programs.run("train", f"--data={programs.data}", "--preset=paper", f"--workdir={tmp_path}/run"))
    assert "--config.recommender.folder=t5-small" in error and "give a local folder with" in error
    assert "start from random weights with --config.recommender.folder=" in error


@pytest.mark.slow
def test_a_workdir_of_another_configuration(programs, finished):
    before = (finished.workdir / "config.json").read_text()
    error = the_error(programs.run("train", *programs.train_flags(finished.workdir, training__seed=5)))
    assert f"{finished.workdir}/config.json" in error and "--config.training.seed=0, now it is 5" in error
    assert "name another --workdir" in error
    assert (finished.workdir / "config.json").read_text() == before


@pytest.mark.slow
def test_a_workdir_of_other_data(programs, finished, tmp_path):
    other = write_data(tmp_path / "shop", short_users=4)
    flags = [flag for flag in programs.train_flags(finished.workdir) if not flag.startswith("--data=")]
    error = the_error(programs.run("train", *flags, f"--data={other}"))
    assert f"{finished.workdir}/config.json" in error and "other data" in error


# ---- Within the guard of the program ----


def spoil(data, file, content):
    (data / file).write_bytes(content.encode() if isinstance(content, str) else content)


def edited(data, file, number, line):
    """The file's text with one line (from 1) replaced; a number past the end appends."""
    lines = (data / file).read_text().splitlines()
    lines[number - 1 : number] = [line]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    ("file", "number", "line", "expected"),
    [
        ("user_sequence.txt", 41, "user3 item1 item2", ":41: user user3 already has a sequence on line 4; join"),
        ("user_sequence.txt", 2, "user1", ":2: user user1 has no items; remove the line"),
        ("items.jsonl", 31, '{"id": "item3", "title": "x"}', ":31: item item3 was already described on line 4; remove"),
        ("items.jsonl", 2, '{"id": "item1", "title": ', ":2: not a JSON object"),
        ("items.jsonl", 2, '{"title": "x"}', ":2: no id; give every item an id"),
    ],
)
def test_a_faulty_line_is_named(data, configuration, error_of, tmp_path, file, number, line, expected):
    spoil(data, file, edited(data, file, number, line))
    assert f"{data}/{file}{expected}" in error_of(assemble, configuration(), tmp_path)


@pytest.mark.parametrize("file", ["user_sequence.txt", "items.jsonl"])
def test_an_empty_file_and_one_that_is_not_utf8(data, configuration, error_of, tmp_path, file):
    content = (data / file).read_bytes()
    spoil(data, file, "\n\n")
    error = error_of(assemble, configuration(), tmp_path)
    assert f"{data}/{file}: the file is empty; write one line" in error
    spoil(data, file, content.replace(b"item4", b"it\xe9m4", 1))
    error = error_of(assemble, configuration(), tmp_path)
    assert f"{data}/{file}:" in error and "not UTF-8 text (byte 0xe9" in error and "save the file as UTF-8" in error


def test_a_missing_file(data, configuration, error_of, tmp_path):
    (data / "user_sequence.txt").unlink()
    assert f"{data}/user_sequence.txt: no such file; write one line a user" in error_of(
        assemble, configuration(), tmp_path
    )
    (data / "items.jsonl").unlink()
    assert f"{data}: holds neither items.jsonl nor item_plain_text.txt" in error_of(assemble, configuration(), tmp_path)


def test_blank_text_for_all_items(tmp_path, configuration, error_of):
    blank = write_data(tmp_path / "blank", blank_items=range(30))
    error = error_of(assemble, configuration(data__path=str(blank)), tmp_path)
    assert f"{blank}: all 30 items have blank text" in error and "give the items a title" in error


def test_a_path_that_no_file_system_has(configuration, error_of):
    error = error_of(train, configuration(), "x" * 300)
    assert error.startswith(f"error: {'x' * 300}: File name too long; expected a file or folder that this")


@pytest.mark.parametrize("zeros", [np.zeros, jnp.zeros])
def test_more_than_the_memory_is_one_line_with_what_needs_less(error_of, zeros):
    error = error_of(lambda: jax.block_until_ready(zeros(2**46, np.float32)))
    assert error.startswith("error: out of memory (") and "--config.training.gradient_accumulation" in error


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"data__tokenizer": "train:abc"}, "--config.data.tokenizer=train:abc: expected train:SIZE with 512 to 500000"),
        (
            {"data__tokenizer": "train", "recommender__folder": "my_t5"},
            "--config.data.tokenizer=train: the weights of --config.recommender.folder=my_t5 have a vocabulary of",
        ),
        (
            {"data__tokenizer": "", "id_generator__folder": "my_t5"},
            "--config.id_generator.folder=my_t5: a recommender of random weights needs the tokenizer of these; name it",
        ),
    ],
)
def test_a_tokenizer_that_cannot_be_trained(configuration, error_of, tmp_path, settings, expected):
    assert expected in error_of(assemble, configuration(**settings), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "read", [Tokenizer.load, described_run, lambda path: resolve_folder(path, flag="--model", random_flag=None)]
)
def test_a_name_that_no_file_system_takes(error_of, tmp_path, read):
    path = tmp_path / ("x" * 300)
    error = error_of(read, path)
    assert error.startswith(f"error: {path}")
    assert error.endswith(": File name too long; expected a file or folder that this process may use")


def test_a_folder_that_may_not_be_looked_into(error_of):
    """As root there is none, so the error that the system gives is made."""

    def read():
        raise PermissionError(errno.EACCES, "Permission denied", "/home/other/run")

    expected = "error: /home/other/run: Permission denied; expected a file or folder that this process may use"
    assert error_of(read) == expected

    def connect():
        raise PermissionError(errno.EACCES, "Permission denied")

    with pytest.raises(PermissionError):
        _guarded(connect, [])


def test_a_tokenizer_that_is_not_there(configuration, error_of, tmp_path):
    error = error_of(assemble, configuration(data__tokenizer=f"{tmp_path}/none/here"), tmp_path)
    assert f"--config.data.tokenizer={tmp_path}/none/here: no such folder" in error and "tokenizer.json" in error


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("sequential; seen; after {hystory}; {target}", ":2: unknown field {hystory}; did you mean {history}?"),
        ("sequential; sen; after {history}; {target}", ":2: group is 'sen'; write seen"),
        ("sequential; seen; after {history}", ":2: 3 parts where 4 are expected; write task;"),
        ("sequential; seen; {user_id} after {history}; {target}", "user_ids=none; set it to train_history"),
    ],
)
def test_a_faulty_prompt_template(configuration, error_of, programs, tmp_path, line, expected):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text(f"# ours\n{line}\n")
    config, tokenizer = configuration(data__prompts=str(prompts)), Tokenizer.load(programs.tokenizer)
    error = error_of(load_prompts, config.data, tokenizer, "shop")
    assert str(prompts) in error and expected in error


# The last two: a digit to Python that is no number, and a number with more digits than Python reads.
@pytest.mark.parametrize("prompt", ["unseen:2", "unseen:-1", "unseen", "other:0", "seen:", "seen:\u00b2", "seen:long"])
def test_an_evaluation_prompt_that_is_not_there(configuration, error_of, programs, prompt):
    prompt = prompt.replace("long", "9" * 5000)
    config, tokenizer = configuration(data__eval_prompt=prompt), Tokenizer.load(programs.tokenizer)
    error = error_of(load_prompts, config.data, tokenizer, "shop")
    assert "--config.data.eval_prompt" in error and "unseen:0 to unseen:1" in error


@pytest.mark.parametrize("section", ["recommender", "id_generator"])
def test_a_tokenizer_and_weights_whose_vocabularies_disagree(programs, configuration, error_of, tmp_path, section):
    folder = small_t5(tmp_path / "t5", vocab_size=640)
    size = Tokenizer.load(programs.tokenizer).size
    error = error_of(assemble, configuration(**{f"{section}__folder": str(folder)}), tmp_path)
    assert f"--config.{section}.folder={folder}: its embedding table has 640 rows, the tokenizer has {size}" in error
    assert "--config.data.tokenizer" in error


def test_two_models_whose_vocabularies_disagree(configuration, error_of, tmp_path):
    folder = small_t5(tmp_path / "t5", vocab_size=2048)
    error = error_of(assemble, configuration(recommender__folder=str(folder)), tmp_path)
    assert "2048" in error and "--config.id_generator.vocab_size" in error


@pytest.mark.parametrize(
    ("flag", "value", "expected"),
    [
        # One history has up to three items, and an ID batch must hold them all.
        ("training__id_items_per_batch", 2, "--config.training.id_items_per_batch"),
        # Runs are selected by NDCG@10.
        ("evaluation__num_beams", 5, "--config.evaluation.num_beams"),
        # A rate that only rises never reaches its peak.
        ("training__warmup_fraction", 1.0, "--config.training.warmup_fraction"),
    ],
)
def test_a_setting_that_cannot_work_is_refused_before_training(
    configuration, error_of, tmp_path, flag, value, expected
):
    def configure_and_assemble():
        assemble(configuration(**{flag: value}), tmp_path)

    error = error_of(configure_and_assemble)
    assert expected in error and f"{value}" in error


@pytest.mark.parametrize("length", [2, 3])
def test_data_without_anything_to_evaluate_on_or_to_train_on(data, configuration, error_of, tmp_path, length):
    """With two items a user nothing is held out; with three nothing is left to predict in training."""
    sequences = [line.split()[: 1 + length] for line in (data / "user_sequence.txt").read_text().splitlines()[:37]]
    spoil(data, "user_sequence.txt", "".join(" ".join(words) + "\n" for words in sequences))
    assert "shop" in error_of(assemble, configuration(), tmp_path)


# ---- Odd, but allowed ----


@pytest.mark.slow
def test_blank_text_for_some_short_users_and_repeated_items_are_allowed(tmp_path, programs):
    data = write_data(tmp_path / "some_blank", blank_items=(3, 4))
    flags = [flag for flag in programs.train_flags(tmp_path / "run", training__rounds=1) if "--data=" not in flag]
    result = programs.run("train", *flags, f"--data={data}", "--config.training.id_epochs=0")
    assert result.returncode == 0, result.stderr
    assert "2 of 30 items have blank text (item3, item4)" in result.stderr
    assert "3 of 40 users have fewer than 3 interactions and are used for training only" in result.stderr
    rows = [json.loads(line) for line in (tmp_path / "run" / "ids" / "round_0.jsonl").read_text().splitlines()]
    assert len({tuple(row["tokens"]) for row in rows}) == 30 and all(row["id"].strip() for row in rows)
    assert json.loads((tmp_path / "run" / "results.json").read_text())["users"] == 37


@pytest.fixture(scope="module")
def wordy_ids(programs):
    """A file of IDs so long that few of them fit into a prompt."""
    path = programs.folder / "wordy.txt"
    path.write_text("".join(f"item{number} made to fit the espresso machine {number}\n" for number in range(30)))
    return path


def test_every_prompt_fits_whatever_the_longest_allowed(programs, wordy_ids):
    """Templates differ in length, so under one limit they keep different numbers of items."""
    dataset, tokenizer = load_dataset(programs.data), Tokenizer.load(programs.tokenizer)
    templates = tuple(PromptTokens(template, tokenizer, "shop") for template in default_templates(False))
    ids = load_table(wordy_ids, dataset.items, tokenizer).tokens
    for longest in range(24, 56):
        source = PromptRenderer(dataset, templates, ids, None, tokenizer.eos_id, 20, longest)
        shape = training_shape(source, seed=0, batch_size=32)
        batches = recommender_epoch(source, seed=0, epoch=0, batch_size=32, num_examples=0, shape=shape)
        for prompt, target in (pair for step in range(len(batches)) for pair in batches.examples(step)):
            assert len(prompt) <= longest
            assert target[-1] == tokenizer.eos_id, "a target is never cut"


@pytest.mark.slow
def test_histories_that_do_not_fit_are_trained_through(programs, wordy_ids, tmp_path):
    limits = {"data__max_prompt_length": 28, "data__max_history": 20}
    programs.train(tmp_path / "run", f"--config.ids.table={wordy_ids}", training__rounds=1, **limits)
    assert json.loads((tmp_path / "run" / "results.json").read_text())["users"] == 37


@pytest.mark.slow
def test_a_learning_rate_at_which_the_loss_is_no_number(programs, tmp_path):
    rates = {"training__warm_start_learning_rate": 1e30}
    error = the_error(programs.run("train", *programs.train_flags(tmp_path / "run", **rates)))
    assert "warm start, epoch" in error and "the loss is nan; lower the learning rate" in error
    assert "--config.training.warm_start_learning_rate" in error and "another --workdir" in error
