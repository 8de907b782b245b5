"""The public API: a trained run is loaded, recommends and evaluates."""

import json
import random
import shutil
from functools import partial

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from idgenrec_jax import trained_run
from idgenrec_jax.data.dataset import LEAVE_ONE_OUT
from idgenrec_jax.data.sample import sample_tokenizer
from idgenrec_jax.errors import InputError
from idgenrec_jax.experiment import train
from idgenrec_jax.presets import preset
from idgenrec_jax.recommender import Recommender, batch_sizes, plan_batches, prompt_widths
from idgenrec_jax.trained_run import load_run
from idgenrec_jax.training.checkpoints import Checkpoints

pytestmark = pytest.mark.slow

NUM_ITEMS, NUM_USERS, BEAMS = 24, 30, 10


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A minute run on given IDs: one epoch, no ID phase."""
    folder = tmp_path_factory.mktemp("recommender")
    sample_tokenizer().save(folder / "tokenizer")
    rng = random.Random(3)
    items = [f"item{number}" for number in range(NUM_ITEMS)]
    data = folder / "shop"
    data.mkdir()
    (data / "item_plain_text.txt").write_text("".join(f"{item} title: red kettle {item}\n" for item in items))
    (folder / "ids.txt").write_text("".join(f"{item} red kettle {number}\n" for number, item in enumerate(items)))
    sequences = [" ".join(rng.choices(items, k=rng.randint(3, 8))) for _ in range(NUM_USERS)]
    (data / "user_sequence.txt").write_text("".join(f"user{u} {line}\n" for u, line in enumerate(sequences)))
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_decoder_layers": 1, "num_heads": 2}
    config = preset("tiny").override(
        {f"{model}.{name}": size for model in ("recommender", "id_generator") for name, size in sizes.items()}
        | {
            "data.path": str(data), "data.tokenizer": str(folder / "tokenizer"), "ids.table": str(folder / "ids.txt"),
            "data.max_history": 4, "training.recommender_learning_rate": 1e-2,
            "training.id_epochs": 0, "training.rounds": 1, "training.recommender_epochs": 1,
            "training.recommender_batch_size": 32,
            "evaluation.num_beams": BEAMS, "evaluation.batch_size": 8, "evaluation.length_penalty": 1.0,
            "training.softmax": "vocabulary", "data.history": "whole",
        }
    )  # fmt: skip
    train(config, folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def recommender(workdir):
    return Recommender(workdir)


def reconfigured(workdir, copy, **sections):
    """The run with other values of some fields, freshly loaded."""
    shutil.copytree(workdir, copy)
    described = json.loads((workdir / "config.json").read_text())
    for section, values in sections.items():
        described["config"][section] |= values
    (copy / "config.json").write_text(json.dumps(described))
    return Recommender(copy)


@pytest.fixture
def long_recommender(workdir, tmp_path):
    """The run with histories of up to 6 items."""
    return reconfigured(workdir, tmp_path / "run", data={"max_history": 6})


@pytest.fixture(scope="module")
def causal_recommender(workdir, tmp_path_factory):
    """The run with causal histories, the softmax over the catalogue, and without seen items."""
    return reconfigured(
        workdir,
        tmp_path_factory.mktemp("causal") / "run",
        data={"history": "causal"},
        training={"softmax": "catalogue"},
        evaluation={"seen_items": "remove", "length_penalty": 0.0},
    )


@pytest.mark.parametrize(
    ("kind", "split", "search"),
    [
        ("recommender", "validation", None),
        ("recommender", "test", "exact"),
        ("causal_recommender", "test", "beam"),
        ("causal_recommender", "test", "exact"),
    ],
)
def test_recommendations_are_those_of_the_evaluation(kind, split, search, request):
    recommender = request.getfixturevalue(kind)
    dataset, ranking = recommender.dataset, recommender.evaluate(split, search)
    assert (ranking.places is not None) == (search == "exact")
    assert len(ranking.users) == NUM_USERS
    histories = []
    for user, target in zip(ranking.users, ranking.targets, strict=True):
        history, held_out = dataset.held_out(int(user), split)
        assert held_out == target
        histories.append([dataset.items[item] for item in history])
    found = recommender.recommend(histories, count=BEAMS, search=search)
    # Both batches are padded differently, so scores may differ in their last bits.
    scores = np.asarray([[one.score for one in row] for row in found])
    np.testing.assert_allclose(scores, ranking.scores, atol=1e-4)
    clear = np.diff(ranking.scores, axis=1).max(axis=1) < -1e-4
    assert clear.sum() > NUM_USERS // 2
    for row in np.flatnonzero(clear):
        assert [one.item for one in found[row]] == [dataset.items[item] for item in ranking.items[row]]


def test_recommendations_are_items_of_the_catalogue_none_twice_best_first(recommender):
    dataset = recommender.dataset
    texts = dict(zip(dataset.items, recommender.ids.texts, strict=True))
    histories = [["item3"], ["item1", "item1", "item2"], [f"item{number}" for number in range(NUM_ITEMS)]]
    for row in recommender.recommend(histories, count=7):
        assert len(row) == 7 == len({one.item for one in row})
        assert all(one.text == texts[one.item] for one in row)
        scores = [one.score for one in row]
        assert scores == sorted(scores, reverse=True) and scores[0] < 0


def test_items_of_the_whole_history_are_removed_where_the_run_says_so(recommender, causal_recommender):
    # The first six are older than the history that a prompt holds.
    histories = [[f"item{number}" for number in range(10)], [f"item{number}" for number in range(NUM_ITEMS - 3)], []]
    rows = [{one.item for one in row} for row in causal_recommender.recommend(histories, count=BEAMS)]
    assert all(not row & set(history) for row, history in zip(rows, histories, strict=True))
    assert [len(row) for row in rows] == [BEAMS, 3, BEAMS]
    kept = recommender.recommend(histories, count=BEAMS)
    assert any(one.item in history for row, history in zip(kept, histories, strict=True) for one in row)


def test_fewer_recommendations_are_the_first_of_more(recommender):
    more, fewer = (recommender.recommend([["item3", "item4"]], count=count)[0] for count in (BEAMS, 3))
    assert fewer == more[:3]


def test_only_the_newest_items_of_a_history_count(recommender):
    assert recommender.recommend([[f"item{n}" for n in range(9)]]) == recommender.recommend(
        [[f"item{n}" for n in range(5, 9)]]
    )


def test_no_histories_give_no_recommendations(recommender):
    assert recommender.recommend([]) == []


def test_mistakes_name_the_way_out(recommender, workdir, tmp_path):
    with pytest.raises(InputError, match="history 1: item 'item99' is not in the catalogue of shop; leave it out"):
        recommender.recommend([["item1"], ["item1", "item99"]])
    several = r"items 'a' \(history 0\), .* 'e' \(history 1\) and 1 more are not in the catalogue of shop; leave them"
    with pytest.raises(InputError, match=several):
        recommender.recommend([["a", "item1", "b"], ["c", "d", "e", "f"]])
    with pytest.raises(InputError, match="11 recommendations asked for, expected 1 to 10"):
        recommender.recommend([["item1"]], count=11)
    with pytest.raises(InputError, match="-1"):
        recommender.recommend([["item1"]], count=-1)
    with pytest.raises(InputError, match=r"count=2\.5: found a float, expected a whole number from 1 to 10"):
        recommender.recommend([["item1"]], count=2.5)
    with pytest.raises(InputError, match="split: found 'train', expected one of validation, test"):
        recommender.evaluate("train")
    for ask in (partial(recommender.evaluate, "test"), partial(recommender.recommend, [["item1"]])):
        with pytest.raises(InputError, match="^search: found 'exakt', expected one of beam, exact$"):
            ask(search="exakt")
    with pytest.raises(InputError, match="expected the --workdir of a run of launch.train"):
        Recommender(tmp_path)
    (tmp_path / "config.json").write_text((workdir / "config.json").read_text())
    with pytest.raises(InputError, match="no checkpoint yet; run launch.train until its first validation"):
        load_run(tmp_path)


@pytest.mark.parametrize(
    ("histories", "message"),
    [
        (["item1", "item2"], r"history 0: found the text 'item1', .* one history alone is written recommend\(\[\["),
        ("item1", "histories: found the text 'item1', expected a list of histories"),
        (None, r"histories: found None \(NoneType\), expected a list of histories"),
        ([["item1"], {"item2"}], r"history 1: found \{'item2'\} \(set\), expected a list of histories"),
        ([["item1"], [3]], r"history 1: found 3 \(int\) as an item, expected its name, a text"),
        (np.asarray([[3, 4]]), "history 0: found .*3.* as an item, expected its name, a text"),
    ],
)
def test_what_is_not_a_list_of_lists_of_names_is_told(recommender, histories, message):
    with pytest.raises(InputError, match=message):
        recommender.recommend(histories)


def test_any_ordered_collection_is_a_history(recommender):
    expected = recommender.recommend([["item1", "item2"]], count=np.int64(3))
    assert recommender.recommend(np.asarray([["item1", "item2"]]), count=3) == expected
    assert recommender.recommend((name for name in [("item1", "item2")]), count=3) == expected


def test_an_empty_history_is_a_prompt_without_items(recommender):
    (found,) = recommender.recommend([[]], count=BEAMS)
    assert len({one.item for one in found}) == BEAMS
    assert found != recommender.recommend([["item1"]], count=BEAMS)[0]


def test_widths_end_with_the_longest_prompt():
    assert prompt_widths(24) == (24,) and prompt_widths(32) == (32,)
    assert prompt_widths(40) == (32, 40) and prompt_widths(512) == (32, 64, 128, 256, 512)


def test_batches_have_few_sizes_and_little_room_to_spare():
    assert batch_sizes(64, 1) == (1, 8, 32) and batch_sizes(8, 1) == (1, 8) and batch_sizes(4, 1) == (1, 4)
    # Devices that split a batch each need as many rows.
    assert batch_sizes(32, 4) == (4, 8, 32) and batch_sizes(16, 16) == (16,) and batch_sizes(12, 3) == (3, 9, 12)
    assert plan_batches(0, (1, 8, 32)) == [] and plan_batches(1, (1, 8, 32)) == [(0, 1)]
    assert plan_batches(2, (1, 8, 32)) == [(0, 8)] and plan_batches(9, (1, 8, 32)) == [(0, 8), (8, 1)]
    assert plan_batches(31, (1, 8, 32)) == [(0, 8), (8, 8), (16, 8), (24, 8)]
    assert plan_batches(73, (1, 8, 32)) == [(0, 32), (32, 32), (64, 8), (72, 1)]
    assert plan_batches(33, (16,)) == [(0, 16), (16, 16), (32, 16)]


def test_fifty_calls_of_growing_histories_compile_a_program_a_size_and_width(long_recommender):
    """Serving does not wait for a compiler: one program for each batch size and width, whatever is asked."""
    compiled = []

    def count(event, _seconds, **details):
        if event.endswith("jaxpr_to_mlir_module_duration"):
            compiled.append(details)

    rng = random.Random(4)
    names = long_recommender.items
    calls = [
        [rng.choices(names, k=length) for _ in range(1 if length % 10 else 1 + length)] for length in range(1, 51)
    ]
    jax.monitoring.register_event_duration_secs_listener(count)
    try:
        together = [long_recommender.recommend(histories, count=3) for histories in calls]
    finally:
        jax.monitoring.unregister_event_duration_listener(count)
    lengths = [len(histories) for histories in calls]
    assert set(lengths) == {1, 11, 21, 31, 41, 51}
    # Widths 32, 64 and the longest; batches of 1 and 8, the most that the run ranks at once.
    assert long_recommender._widths[:2] == (32, 64) and len(long_recommender._widths) == 3
    assert long_recommender._batch_sizes == (1, 8)
    assert 3 <= len(compiled) <= 2 * 3
    for histories, found in zip(calls, together, strict=True):
        if len(histories) == 11:
            alone = [long_recommender.recommend([history], count=3)[0] for history in histories]
            scores = [[one.score for one in row] for row in found]
            np.testing.assert_allclose([[one.score for one in row] for row in alone], scores, atol=1e-4)
            clear = np.diff(scores, axis=1).max(axis=1) < -1e-4
            assert clear.any()
            for row in np.flatnonzero(clear):
                assert [one.item for one in found[row]] == [one.item for one in alone[row]]


def test_recommending_needs_the_workdir_alone(workdir, recommender):
    assert recommender.dataset.name == "shop"
    moved = workdir.parent / "moved"
    (workdir.parent / "shop").rename(moved)
    try:
        alone = Recommender(workdir)
        assert alone.recommend([["item1"]]) == recommender.recommend([["item1"]])
        with pytest.raises(InputError, match=f"{workdir.parent}/shop: no such folder.* has moved.*--data=FOLDER"):
            alone.evaluate("test")
        elsewhere = Recommender(workdir, data=str(moved))
        assert elsewhere.dataset.users == recommender.dataset.users and elsewhere.dataset.name == "shop"
        (workdir / "ids" / "round_0.jsonl").rename(moved / "ids")
        with pytest.raises(InputError, match="round_0.jsonl: no such file; it is a file of the run; restore it"):
            Recommender(workdir)
        lines = (moved / "ids").read_text().splitlines()
        (workdir / "ids" / "round_0.jsonl").write_text("\n".join(lines[:-1]))
        with pytest.raises(InputError, match="round_0.jsonl: 23 items, but the run has 24"):
            Recommender(workdir)
        for line, message in (('{"item": ["item1"], "id": "red"}', "expected {"), ("[" * 100_000, "nested too deeply")):
            (workdir / "ids" / "round_0.jsonl").write_text(f"{lines[0]}\n{line}\n")
            with pytest.raises(InputError, match=f"round_0.jsonl:2: .*{message}.*restore it, or train again"):
                Recommender(workdir)
    finally:
        (moved / "ids").replace(workdir / "ids" / "round_0.jsonl")
        moved.rename(workdir.parent / "shop")


@pytest.mark.parametrize("when", ["meta", "restore"])
def test_a_checkpoint_that_training_replaces_meanwhile_is_given_up_for_the_newer(workdir, tmp_path, monkeypatch, when):
    other = tmp_path / "run"
    shutil.copytree(workdir, other)
    (other / "results.json").unlink()
    best = other / "checkpoints" / "best"
    (step,) = (int(path.name) for path in best.iterdir() if path.name.isdigit())
    real, expected = getattr(Checkpoints, when), load_run(workdir)

    def overtaken(self, number, *like, **required):
        if number == step:
            shutil.copytree(best / str(step), best / str(step + 1))
            shutil.rmtree(best / str(step))
        return real(self, number, *like, **required)

    monkeypatch.setattr(Checkpoints, when, overtaken)
    run = load_run(other)
    jax.tree.map(np.testing.assert_array_equal, run.params, expected.params)
    assert not (best / str(step)).exists()


def test_a_checkpoint_that_cannot_be_restored_is_one_line(workdir, tmp_path, monkeypatch):
    other = tmp_path / "run"
    shutil.copytree(workdir, other)

    def broken(self, *path_and_args):
        raise ValueError("checksum differs\nmore")

    monkeypatch.setattr(ocp.Checkpointer, "restore", broken)
    with pytest.raises(InputError, match=r"best/\d+: cannot be read \(checksum differs\); expected a checkpoint"):
        load_run(other)


def test_a_run_is_read_on_other_devices_than_those_of_training(workdir, recommender, tmp_path, monkeypatch):
    other = tmp_path / "run"
    shutil.copytree(workdir, other)
    described = json.loads((other / "config.json").read_text())
    described["config"]["mesh"] = {"data": 3, "fsdp": 5, "tensor": 1}
    (other / "config.json").write_text(json.dumps(described))
    assert Recommender(other).recommend([["item1"]]) == recommender.recommend([["item1"]])
    # Devices that do not divide the batches of ranking fill them up.
    monkeypatch.setattr(trained_run, "batch_devices", lambda mesh: 3)
    assert load_run(other).config.evaluation.batch_size == 9


def test_a_workdir_of_another_version_is_named(workdir, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(workdir, other)
    described = json.loads((other / "config.json").read_text())
    described["config"]["training"]["num_buckets"] = 4
    (other / "config.json").write_text(json.dumps(described))
    with pytest.raises(InputError, match=f"{other}/config.json: written by another version.*training.num_buckets"):
        load_run(other)


def test_a_run_can_be_used_where_its_id_file_is_gone(workdir):
    """The IDs of every round are in the workdir; the file they came from is not needed any more."""
    table = workdir.parent / "ids.txt"
    content = table.read_text()
    table.unlink()
    try:
        assert len(Recommender(workdir).recommend([["item1"]], count=3)[0]) == 3
    finally:
        table.write_text(content)


def test_a_run_on_names_with_blanks_recommends_the_same_under_these_names(workdir, recommender, tmp_path):
    def named(item):
        return f"red {item} № 1"

    run = shutil.copytree(workdir, tmp_path / "run")
    for path in (run / "ids").glob("*.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps(row | {"item": named(row["item"])}) + "\n" for row in rows))
    described = json.loads((run / "config.json").read_text())
    described["protocol"]["split"] = "by time"
    (run / "config.json").write_text(json.dumps(described))
    assert (load_run(workdir).split, load_run(run).split) == (LEAVE_ONE_OUT, "by time")
    other = Recommender(run)
    histories = [["item1", "item2"], ["item3"]]
    expected = [[(named(one.item), one.text) for one in row] for row in recommender.recommend(histories)]
    found = other.recommend([[named(item) for item in history] for history in histories])
    assert [[(one.item, one.text) for one in row] for row in found] == expected
    assert len(found[0]) == BEAMS
