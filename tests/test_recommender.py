"""The public API: a trained run is loaded, recommends and evaluates."""

import json
import random
import shutil

import numpy as np
import pytest

from idgenrec_jax.config import preset
from idgenrec_jax.data.sample import sample_tokenizer
from idgenrec_jax.errors import InputError
from idgenrec_jax.experiment import train
from idgenrec_jax.recommender import Recommender, load_run

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
        }
    )  # fmt: skip
    train(config, folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def recommender(workdir):
    return Recommender(workdir)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_recommendations_are_those_of_the_evaluation(recommender, split):
    dataset, ranking = recommender.dataset, recommender.evaluate(split)
    assert len(ranking.users) == NUM_USERS
    histories = []
    for user, target in zip(ranking.users, ranking.targets, strict=True):
        history, held_out = dataset.held_out(int(user), split)
        assert held_out == target
        histories.append([dataset.items[item] for item in history])
    found = recommender.recommend(histories, count=BEAMS)
    # Both batches are padded differently, so scores may differ in their last bits.
    scores = np.asarray([[one.score for one in row] for row in found])
    np.testing.assert_allclose(scores, ranking.scores, atol=1e-4)
    clear = np.diff(ranking.scores, axis=1).max(axis=1) < -1e-4
    assert clear.sum() > NUM_USERS // 2
    for row in np.flatnonzero(clear):
        assert [one.item for one in found[row]] == [dataset.items[item] for item in ranking.items[row]]


def test_recommendations_are_items_of_the_catalogue_none_twice_best_first(recommender):
    dataset = recommender.dataset
    texts = dict(zip(dataset.items, recommender.ids.table.texts, strict=True))
    histories = [["item3"], ["item1", "item1", "item2"], [f"item{number}" for number in range(NUM_ITEMS)]]
    for row in recommender.recommend(histories, count=7):
        assert len(row) == 7 == len({one.item for one in row})
        assert all(one.text == texts[one.item] for one in row)
        scores = [one.score for one in row]
        assert scores == sorted(scores, reverse=True) and scores[0] < 0


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
    with pytest.raises(InputError, match="'item99' is not in the catalogue of shop; leave it out"):
        recommender.recommend([["item1", "item99"]])
    with pytest.raises(InputError, match="11 recommendations asked for, expected 1 to 10"):
        recommender.recommend([["item1"]], count=11)
    with pytest.raises(InputError, match="-1"):
        recommender.recommend([["item1"]], count=-1)
    with pytest.raises(InputError, match="expected the --workdir of a run of launch.train"):
        Recommender(tmp_path)
    (tmp_path / "config.json").write_text((workdir / "config.json").read_text())
    with pytest.raises(InputError, match="no checkpoint yet; run launch.train until its first validation"):
        load_run(tmp_path)


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
