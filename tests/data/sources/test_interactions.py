"""What all raw formats share: the k-core filter, the order of time, and a folder that is whole or absent."""

import json

import pytest

from idgenrec_jax.data.dataset import load_dataset
from idgenrec_jax.data.sources.interactions import (
    Interaction,
    chronological_sequences,
    core_filter,
    prepare_folder,
)
from idgenrec_jax.errors import InputError


def interactions_of(*rows):
    return [Interaction(user, item, time) for user, item, time in rows]


def prepare(output, interactions, core=1):
    fields = {"a": {"title": "A"}, "b": {"title": "Bé"}}
    return prepare_folder(
        output, "test", interactions, fields, core=core, min_rating=0.0, raw_interactions=len(interactions)
    )


def test_core_filter_repeats_until_nothing_changes():
    # c has one buyer; without c, user w has one item; without w, item b has one buyer; and so on down the chain.
    chain = interactions_of(("w", "c", 1), ("w", "b", 2), ("v", "b", 3), ("v", "a", 4))
    core = interactions_of(("u", "x", 1), ("u", "y", 2), ("t", "x", 3), ("t", "y", 4))
    assert core_filter(chain + core, 2) == core
    assert core_filter(chain + core, 1) == chain + core
    assert core_filter(chain, 2) == []


def test_sequences_follow_time_and_ties_do_not_follow_the_file():
    items = [f"i{number:02d}" for number in range(20)]
    rows = interactions_of(*[("u", item, 5) for item in items], ("u", "late", 9), ("v", "b", 7), ("u", "early", 1))
    sequences, tied = chronological_sequences(rows)
    assert tied == 20 and list(sequences) == ["u", "v"] and sequences["v"] == ["b"]
    assert sequences["u"][0] == "early" and sequences["u"][-1] == "late"
    middle = sequences["u"][1:-1]
    assert sorted(middle) == items and middle != items
    assert chronological_sequences(list(reversed(rows)))[0]["u"] == sequences["u"]


def test_repeated_purchases_are_kept():
    rows = interactions_of(("u", "a", 1), ("u", "b", 2), ("u", "a", 3))
    assert chronological_sequences(rows)[0] == {"u": ["a", "b", "a"]}


def test_the_folder_can_be_loaded_and_says_how_it_was_made(tmp_path):
    rows = interactions_of(("u", "b", 3), ("u", "a", 1), ("u", "a", 2), ("v", "c", 1), ("v", "a", 1), ("v", "b", 5))
    made = prepare(tmp_path / "deep" / "shop", rows)
    dataset = load_dataset(tmp_path / "deep" / "shop")
    assert dataset.items == ("a", "b", "c") and dataset.item_texts == ("title: A", "title: Bé", "")
    assert dataset.sequences[0].tolist() == [0, 0, 1] and len(dataset.sequences[1]) == 3
    summary = json.loads((tmp_path / "deep" / "shop" / "preparation.json").read_text())
    assert summary["tied_interactions"] == made.tied_interactions == 2 and "hash" in summary["tie_rule"]
    assert (made.users, made.items, made.interactions) == (2, 3, 6)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["shop"], "no temporary folder is left"


def test_an_output_that_is_not_empty_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError) as caught:
        prepare(tmp_path, interactions_of(("u", "a", 1)))
    assert str(caught.value) == f"--output={tmp_path}: exists and is not empty; remove it or choose another folder"
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_an_output_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        prepare(tmp_path / "file" / "shop", interactions_of(("u", "a", 1)))


def test_nothing_left_after_filtering(tmp_path):
    with pytest.raises(InputError, match="--core=5 --min_rating=0: none of the 1 interactions is left.*lower them"):
        prepare(tmp_path / "shop", interactions_of(("u", "a", 1)), core=5)
    assert not (tmp_path / "shop").exists()
