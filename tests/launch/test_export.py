"""The program launch.export, on the undisturbed run: what transformers, and JAX without this package, make of it."""

import hashlib
import json
import os
import random
import re
import runpy
import shutil
import subprocess
import sys
import textwrap

import jax
import numpy as np
import pytest
from flax import nnx
from program_runs import NUM_ITEMS, environment, the_error, write_data

from idgenrec_jax.data.held_out_batches import pad_rows
from idgenrec_jax.errors import InputError
from idgenrec_jax.export.folders import export_folders
from idgenrec_jax.export.recommend_program import export_program
from idgenrec_jax.models.huggingface import load_t5, save_t5
from idgenrec_jax.recommender import Recommender
from idgenrec_jax.trained_run import evaluation_renderer, load_ids, load_run

pytestmark = pytest.mark.slow

COUNT = 10


@pytest.fixture(scope="module")
def exported(programs, finished):
    """The Hugging Face folders of the undisturbed run."""
    output = programs.folder / "exported"
    result = programs.run("export", f"--workdir={finished.workdir}", f"--output={output}")
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"exported to {output}\n"
    return output


@pytest.fixture(scope="module")
def recommender(finished):
    return Recommender(finished.workdir)


def histories(count):
    """Histories of one to five items of the catalogue."""
    rng = random.Random(1)
    return [[f"item{rng.randrange(NUM_ITEMS)}" for _ in range(rng.randint(1, 5))] for _ in range(count)]


def prompts_of(workdir, names):
    """The prompts that the recommender makes of histories of item names, each with the numbers of its items."""
    run = load_run(workdir)
    ids = load_ids(run)
    index = {name: number for number, name in enumerate(ids.items.items)}
    renderer = evaluation_renderer(run, ids)
    return [renderer.numbered_prompt(0, np.asarray([index[name] for name in row], np.int32), 0) for row in names]


def item_lines(folder):
    return [json.loads(line) for line in (folder / "item_ids.jsonl").read_text(encoding="utf-8").splitlines()]


def test_every_file_is_in_the_manifest_with_its_checksum(exported, finished):
    manifest = json.loads((exported / "MANIFEST.json").read_text())
    files = {str(path.relative_to(exported)) for path in exported.rglob("*") if path.is_file()}
    assert set(manifest["files"]) == files - {"MANIFEST.json"}
    for name, entry in manifest["files"].items():
        content = (exported / name).read_bytes()
        assert entry == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    assert manifest["selected"]["step"] == finished.results["selected"]["step"]
    assert not list(exported.parent.glob(".exported*"))
    for name in ("recommender", "id_generator"):
        card = (exported / name / "README.md").read_text()
        assert f"{finished.results['test']['ndcg@10']:.4f}" in card and "40 users, 30 items" in card


def test_transformers_loads_both_models_with_our_logits(exported, finished):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    run = load_run(finished.workdir)
    rng = np.random.default_rng(0)
    tokens, targets = rng.integers(2, run.tokenizer.size, (2, 5, 8))
    for name in ("recommender", "id_generator"):
        model = transformers.T5ForConditionalGeneration.from_pretrained(exported / name).eval()
        loaded = transformers.AutoTokenizer.from_pretrained(exported / name)
        text = "red Verano kettle"
        assert loaded(text).input_ids == [*run.tokenizer.encode(text), run.tokenizer.eos_id]
        with torch.no_grad():
            theirs = model(input_ids=torch.from_numpy(tokens), decoder_input_ids=torch.from_numpy(targets)).logits
        ours = nnx.merge(run.graphdefs[name], run.params[name])
        mask = jax.numpy.ones(tokens.shape, bool)
        hidden = ours.decode(jax.numpy.asarray(targets), ours.encode(jax.numpy.asarray(tokens), mask), mask)
        np.testing.assert_allclose(ours.logits(hidden), theirs.numpy(), atol=1e-4, rtol=0)


def test_constrained_generate_gives_our_ten_best_for_a_hundred_histories(exported, finished, recommender):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    names = histories(100)
    # With as many beams as items both searches miss nothing: those of transformers are also taken up by forced ends.
    expected = recommender.recommend(names, count=COUNT, search="exact")
    allowed, name_of = {}, {}
    for line in item_lines(exported):
        target = line["target_tokens"]
        name_of[tuple(target)] = line["item"]
        for length, token in enumerate(target):
            allowed.setdefault(tuple(target[:length]), set()).add(token)
    model = transformers.T5ForConditionalGeneration.from_pretrained(exported / "recommender").eval()
    prompts, numbers = zip(*prompts_of(finished.workdir, names), strict=True)
    tokens, mask = pad_rows(prompts, len(prompts), max(map(len, prompts)))
    numbers, _ = pad_rows(numbers, *tokens.shape)
    # [histories, 1, tokens that look, tokens that are looked at]
    sees = (mask[:, None, :] & (numbers[:, None, :] <= numbers[:, :, None]))[:, None]
    found = model.generate(
        encoder_outputs=model.encoder(torch.from_numpy(tokens).long(), attention_mask=torch.from_numpy(sees)),
        attention_mask=torch.from_numpy(mask).long(),
        num_beams=len(name_of),
        num_return_sequences=COUNT,
        do_sample=False,
        prefix_allowed_tokens_fn=lambda _, prefix: sorted(allowed.get(tuple(prefix.tolist()[1:]), {1})),
        return_dict_in_generate=True,
        output_scores=True,
    )
    sequences = [row[1 : row.index(1) + 1] for row in found.sequences.tolist()]
    scores = found.sequences_scores.numpy().reshape(len(names), COUNT)
    items = np.asarray([name_of[tuple(sequence)] for sequence in sequences]).reshape(len(names), COUNT)
    ours = np.asarray([[one.score for one in row] for row in expected])
    np.testing.assert_allclose(scores, ours, atol=1e-4)
    # Where neighbours' scores are as good as equal, rounding may swap them.
    clear = (np.diff(ours, axis=1) < -1e-4).all(axis=1)
    assert clear.sum() > 80
    for row in np.flatnonzero(clear):
        assert items[row].tolist() == [one.item for one in expected[row]]


def test_the_code_of_the_cards_runs_and_finds_what_we_find(exported, recommender):
    pytest.importorskip("torch")
    printed = {}
    for name in ("recommender", "id_generator"):
        (code,) = re.findall(r"```python\n(.*?)```", (exported / name / "README.md").read_text(), re.DOTALL)
        result = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, cwd=exported / name, check=False,
            env=environment(exported) | {"PYTHONPATH": ""},
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        printed[name] = result.stdout.splitlines()
    sequence = recommender.dataset.training_sequence(0)[-recommender.config.data.max_history :]
    history = [recommender.dataset.items[item] for item in sequence]
    assert printed["recommender"] == [one.item for one in recommender.recommend([history], count=COUNT)[0]]
    assert len(printed["id_generator"]) == 1


def test_the_folders_are_trained_on(programs, exported):
    """Shapes and vocabulary come from the folders, and so do the weights: no warm start."""
    result = programs.train(
        programs.folder / "goes_on",
        f"--config.recommender.folder={exported / 'recommender'}",
        f"--config.id_generator.folder={exported / 'id_generator'}",
        training__rounds=1, training__recommender_epochs=1,
    )  # fmt: skip
    assert "warm start" not in result.stderr and "round 1, recommender phase, epoch 1/1" in result.stderr


def test_the_compiled_function_recommends_without_this_package(programs, finished, recommender, tmp_path):
    output = programs.folder / "compiled_function"
    result = programs.run("export", f"--workdir={finished.workdir}", f"--output={output}", "--format=stablehlo")
    assert result.returncode == 0, result.stderr
    script = textwrap.dedent(f"""
        import runpy, sys
        runpy.run_path({str(output / "recommend.py")!r}, run_name="__main__")
        assert not any(name.startswith("idgenrec_jax") for name in sys.modules)
        """)
    for history in [["item3"], ["item1", "item2"], [f"item{number}" for number in range(9)]]:
        done = subprocess.run(
            [sys.executable, "-c", script, *history], capture_output=True, text=True, cwd=tmp_path, check=False,
            env=environment(programs.compiled) | {"PYTHONPATH": ""},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        rows = [line.split("\t") for line in done.stdout.splitlines()]
        expected = recommender.recommend([history], count=COUNT)[0]
        assert [(item, text) for item, text, _ in rows] == [(one.item, one.text) for one in expected]
        np.testing.assert_allclose([float(row[2]) for row in rows], [one.score for one in expected], atol=1e-4)


@pytest.fixture(scope="module")
def reconfigured(finished, programs):
    """Copies of the run that leave out seen items and rank by exact scores, by how they read histories.

    The weights were trained with causal histories.
    """

    def make(history):
        workdir = programs.folder / f"reads_{history}"
        if not workdir.exists():
            shutil.copytree(finished.workdir, workdir)
            described = json.loads((workdir / "config.json").read_text())
            described["config"]["data"]["history"] = history
            described["config"]["evaluation"] |= {"seen_items": "remove", "search": "exact"}
            (workdir / "config.json").write_text(json.dumps(described))
        return workdir

    return make


@pytest.mark.parametrize("reading", ["whole", "causal"])
def test_the_cards_of_runs_without_seen_items_find_what_we_find(reconfigured, reading, monkeypatch, capsys):
    pytest.importorskip("torch")
    workdir = reconfigured(reading)
    folder = workdir / "out" / "recommender"
    export_folders(workdir, workdir / "out")
    fields = json.loads((folder / "config.json").read_text())
    assert (fields["softmax"], fields["history"]) == ("catalogue", reading)
    assert json.loads((folder / "generation_config.json").read_text())["renormalize_logits"] is True
    card = (folder / "README.md").read_text()
    assert f"history: {reading}" in card and "by exact search, items seen before: remove" in card
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    example = re.findall(r"item\d+", re.search(r"^history = .*$", code, re.MULTILINE)[0])
    histories = [example]
    # The other card has its prompt as a text.
    if reading == "causal":
        histories.append(["item7", "item7"])
    monkeypatch.chdir(folder)
    recommender = Recommender(workdir)
    for history in histories:
        exec(re.sub(r"^history = .*$", f"history = {history!r}", code, flags=re.MULTILINE), {})
        found = capsys.readouterr().out.split()
        assert found == [one.item for one in recommender.recommend([history], count=COUNT, search="beam")[0]]
        assert not set(found) & set(history)


def test_the_compiled_function_leaves_out_seen_items(reconfigured, tmp_path, caplog):
    workdir = reconfigured("causal")
    export_program(workdir, tmp_path / "out", most_seen=2)
    assert "its metrics are of exact search; the exported function searches with beams" in caplog.text
    script = runpy.run_path(str(tmp_path / "out" / "recommend.py"))
    recommender = Recommender(workdir)
    for history in (["item3", "item4"], ["item9", "item1", "item9", "item1", "item9", "item1"], ["item2"]):
        found = script["recommend"](tmp_path / "out", history)
        expected = recommender.recommend([history], count=COUNT, search="beam")[0]
        assert [(item, text) for item, text, _ in found] == [(one.item, one.text) for one in expected]
        np.testing.assert_allclose([row[2] for row in found], [one.score for one in expected], atol=1e-4)
    # Of a history of more items than the search leaves out, the rest is dropped from what it finds.
    first = [row[0] for row in script["recommend"](tmp_path / "out", ["item3", "item4"])]
    history = [*first, "item3", "item4"]
    assert not {row[0] for row in script["recommend"](tmp_path / "out", history)} & set(history)


@pytest.fixture
def script_error(programs, finished, tmp_path, monkeypatch, capsys):
    """What the script of a compiled function says of a mistake, in a copy of the export that a test may damage."""
    output = programs.folder / "script"
    if not output.exists():
        export_program(finished.workdir, output)
    folder = tmp_path / "copy"
    shutil.copytree(output, folder)

    def error(*names):
        monkeypatch.setattr(sys, "argv", ["recommend.py", *names])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(folder / "recommend.py"), run_name="__main__")
        assert ended.value.code == 2
        printed = capsys.readouterr()
        assert printed.out == "" and printed.err.startswith("error: ") and printed.err.count("\n") == 1
        return printed.err

    return folder, error


def test_mistakes_with_the_compiled_function_are_one_line(script_error, monkeypatch):
    folder, error = script_error
    assert "no items given; expected the items of a history, oldest first" in error()
    assert f"error: 'nosuch': not in the catalogue of {NUM_ITEMS} items" in error("item1", "nosuch", "nosuch")
    assert "'a', 'b', 'c', 'd', 'e' and 1 more: not in the catalogue" in error(*"abcdef")
    with monkeypatch.context() as without:
        for module in ("flatbuffers", "jax._src.export.serialization"):
            without.setitem(sys.modules, module, None)
        assert "; pip install flatbuffers" in error("item1")
    (folder / "recommend.stablehlo").write_bytes(b"of another time")
    assert f"jax {jax.__version__} cannot read what jax {jax.__version__} wrote" in error("item1")
    (folder / "recommend.stablehlo").unlink()
    assert "recommend.stablehlo: cannot be read (No such file or directory); export the run again" in error("item1")
    (folder / "prompt.json").write_text("{")
    assert "prompt.json: not a JSON document" in error("item1")
    (folder / "item_ids.jsonl").write_text("{}\n")
    assert "item_ids.jsonl: not a file of this export" in error("item1")


def test_a_function_for_other_platforms_says_so(finished, tmp_path, monkeypatch, capsys):
    export_program(finished.workdir, tmp_path / "out", platforms=["tpu"])
    monkeypatch.setattr(sys, "argv", ["recommend.py", "item1"])
    with pytest.raises(SystemExit):
        runpy.run_path(str(tmp_path / "out" / "recommend.py"), run_name="__main__")
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "tpu" in error and "export the run again with --platforms=" in error


@pytest.fixture
def moved(finished, tmp_path):
    """A copy of the run whose data folder is gone."""
    workdir = tmp_path / "run"
    shutil.copytree(finished.workdir, workdir)
    described = json.loads((workdir / "config.json").read_text())
    described["config"]["data"]["path"] = str(tmp_path / "gone")
    (workdir / "config.json").write_text(json.dumps(described))
    return workdir


def test_an_export_needs_the_workdir_alone_and_takes_its_example_from_data_where_given(programs, moved, exported):
    leftover = moved / f".alone.{os.getpid()}.tmp"
    leftover.mkdir()
    (leftover / "half").write_text("of a killed export")
    export_folders(moved, moved / "alone")
    for name in ("recommender", "id_generator"):
        for file in set((exported / name).iterdir()) - {exported / name / "README.md"}:
            assert (moved / "alone" / name / file.name).read_bytes() == file.read_bytes(), file
    assert not leftover.exists() and len(load_ids(load_run(moved)).items) == NUM_ITEMS
    export_folders(moved, moved / "with_data", data=str(programs.data))
    recommender = Recommender(moved, str(programs.data))
    cards = [(moved / name / "recommender" / "README.md").read_text() for name in ("alone", "with_data")]
    own = [recommender.dataset.items[item] for item in recommender.dataset.training_sequence(0)]
    for card, history in zip(cards, (list(recommender.items[:3]), own), strict=True):
        assert f"history = {history[-recommender.config.data.max_history :]!r}\n" in card
    other = write_data(moved.parent / "other")
    (other / "items.jsonl").write_text((other / "items.jsonl").read_text() + '{"id": "more", "title": "more"}\n')
    with pytest.raises(InputError, match="1 of 31 items of the catalogue have no line, the first is 'more'"):
        export_folders(moved, moved / "never", data=str(other))


@pytest.mark.parametrize("name", ["ids", "evaluation_test.json", "checkpoints/best/9", "lock", "tensorboard/new"])
def test_an_export_does_not_take_the_place_of_a_file_of_the_run(finished, name):
    with pytest.raises(InputError, match=f"{name.split('/')[0]} is the run's own in .*; name another folder"):
        export_folders(finished.workdir, finished.workdir / name)


@pytest.mark.parametrize("place", [".", ".."])
def test_an_export_does_not_take_the_place_of_the_run(finished, place):
    with pytest.raises(InputError, match="holds the run .* itself; name another folder"):
        export_folders(finished.workdir, finished.workdir / place)


def test_weights_in_several_files_and_in_bfloat16_are_the_same_model(finished, tmp_path):
    run = load_run(finished.workdir)
    model = nnx.merge(run.graphdefs["recommender"], run.params["recommender"])
    save_t5(model, tmp_path / "parts", shard_bytes=20_000)
    save_t5(model, tmp_path / "half", dtype="bfloat16")
    assert len(list((tmp_path / "parts").glob("model-*.safetensors"))) > 2
    assert not list(tmp_path.rglob("*.tmp"))
    parts, half = load_t5(tmp_path / "parts"), load_t5(tmp_path / "half")
    for path, value in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        np.testing.assert_array_equal(dict(nnx.to_flat_state(nnx.state(parts, nnx.Param)))[path][...], value[...])
        rounded = np.asarray(value[...]).astype(jax.numpy.bfloat16).astype(np.float32)
        np.testing.assert_array_equal(dict(nnx.to_flat_state(nnx.state(half, nnx.Param)))[path][...], rounded)
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    for name, dtype in (("parts", "float32"), ("half", "bfloat16")):
        loaded = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path / name, dtype="auto")
        assert str(loaded.dtype) == f"torch.{dtype}"
        table = loaded.shared.weight.detach().float().numpy()
        np.testing.assert_allclose(table, model.shared.table[...], rtol=0 if name == "parts" else 2**-8)


def test_mistakes_are_one_line(programs, finished, exported, tmp_path):
    # An export of another kind, and one in which the user keeps something of his own, are not written anew.
    used = tmp_path / "used"
    shutil.copytree(exported, used)
    (used / "notes.txt").write_text("mine")
    for output, flags in ((exported, ["--format=stablehlo"]), (used, [])):
        error = the_error(programs.run("export", f"--workdir={finished.workdir}", f"--output={output}", *flags))
        assert f"{output}: exists already; delete it or name another folder" in error
    assert (used / "notes.txt").read_text() == "mine"
    (used / "notes.txt").unlink()
    assert programs.run("export", f"--workdir={finished.workdir}", f"--output={used}").returncode == 0
    assert (used / "MANIFEST.json").read_text() == (exported / "MANIFEST.json").read_text()
    (used / "item_ids.jsonl").unlink()
    (used / "item_ids.jsonl").symlink_to("nowhere")
    with pytest.raises(InputError, match="exists already; delete it or name another folder"):
        export_folders(finished.workdir, used)
    error = the_error(programs.run("export", f"--workdir={tmp_path}", f"--output={tmp_path / 'out'}"))
    assert "expected the --workdir of a run of launch.train" in error and not (tmp_path / "out").exists()
    error = the_error(
        programs.run(
            "export", f"--workdir={finished.workdir}", f"--output={tmp_path / 'out'}", "--format=stablehlo",
            "--platforms=abacus",
        )
    )  # fmt: skip
    assert "--platforms=abacus: expected some of cpu, cuda, rocm, tpu" in error and not (tmp_path / "out").exists()
    flags = ["--format=stablehlo", "--dtype=bfloat16"]
    error = the_error(programs.run("export", f"--workdir={finished.workdir}", f"--output={tmp_path / 'out'}", *flags))
    assert "--dtype=bfloat16: expected with --format=huggingface only" in error
