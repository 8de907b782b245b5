"""What all raw formats share: the k-core filter, the order of time, and a folder that is whole or absent."""

import json

import pytest

from idgenrec_jax.data.dataset import load_dataset
from idgenrec_jax.data.sources import SOURCES
from idgenrec_jax.data.sources.preparation import (
    choose_among_repeats,
    chronological_sequences,
    core_filter,
    drop_exact_repeats,
    prepare,
)
from idgenrec_jax.data.sources.source import Interaction, RawData, Source
from idgenrec_jax.errors import InputError

FIELDS = {"a": {"title": "A"}, "b": {"title": "Bé", "brand": " N/A"}}


def interactions_of(*rows):
    return [Interaction(*row) for row in rows]


@pytest.fixture
def prepare_rows(tmp_path, monkeypatch):
    """Prepares interactions as if a raw format had given them."""

    def run(output, rows, core=1, min_rating=0.0, duplicates="keep", fields=FIELDS):
        places = [(f"raw:{number}", row) for number, row in enumerate(rows, 1)]
        monkeypatch.setitem(SOURCES, "rows", Source("rows", lambda folder: RawData(iter(places), lambda items: fields)))
        return prepare("rows", tmp_path, output, core=core, min_rating=min_rating, duplicates=duplicates)

    return run


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


def test_the_folder_can_be_loaded_and_says_how_it_was_made(tmp_path, prepare_rows, caplog):
    rows = interactions_of(("u", "b", 3), ("u", "a", 1), ("u", "a", 2), ("v", "c", 1), ("v", "a", 1), ("v", "b", 5))
    caplog.set_level("INFO", "absl")
    made = prepare_rows(tmp_path / "deep" / "shop", rows)
    dataset = load_dataset(tmp_path / "deep" / "shop")
    assert dataset.items == ("a", "b", "c") and dataset.item_texts == ("title: A", "title: Bé", "")
    assert dataset.sequences[0].tolist() == [0, 0, 1] and len(dataset.sequences[1]) == 3
    summary = json.loads((tmp_path / "deep" / "shop" / "preparation.json").read_text())
    assert summary["tied_interactions"] == made.tied_interactions == 2 and "hash" in summary["tie_rule"]
    assert (made.users, made.items, made.interactions) == (2, 3, 6)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["shop"], "no temporary folder is left"
    assert "lacks 1 of 3 items (c), which get no text" in caplog.text
    assert "n/a, na, nan, nat, nil, none, null, undefined): 1, written as blank" in caplog.text


def test_an_event_that_is_recorded_twice_is_one(tmp_path, prepare_rows):
    # The last event of u stands twice in the file: kept, the history would end in its own target.
    rows = interactions_of(
        ("u", "a", 1), ("u", "b", 2), ("u", "c", 3), ("u", "c", 3), ("v", "c", 3), ("v", "c", 3.0), ("v", "a", 5)
    )  # fmt: skip
    made = prepare_rows(tmp_path / "shop", rows)
    dataset = load_dataset(tmp_path / "shop")
    assert [sequence.tolist() for sequence in dataset.sequences] == [[0, 1, 2], [2, 0]]
    assert (made.raw_interactions, made.exact_repeats, made.repeats, made.interactions) == (7, 2, 0, 5)
    summary = json.loads((tmp_path / "shop" / "preparation.json").read_text())
    assert (summary["exact_repeats"], summary["repeats"], summary["duplicates"]) == (2, 0, "keep")
    assert "2 exact repeats (same user, item and time) dropped" in made.summary()


def test_an_event_that_is_recorded_twice_counts_once_towards_the_core(tmp_path, prepare_rows):
    # Item b has one event, recorded twice; user w as well.
    core = interactions_of(("u", "a", 1), ("u", "c", 2), ("v", "a", 1), ("v", "c", 2))
    rows = core + interactions_of(("u", "b", 3), ("u", "b", 3), ("w", "a", 1), ("w", "a", 1))
    prepare_rows(tmp_path / "shop", rows, core=2)
    dataset = load_dataset(tmp_path / "shop")
    assert dataset.items == ("a", "c") and dataset.users == ("u", "v")


def test_the_first_of_exact_repeats_is_kept_in_its_place():
    rows = interactions_of(("u", "a", 1, 5), ("v", "a", 1, 4), ("u", "a", 1, 3), ("u", "a", 2, 2))
    assert drop_exact_repeats(rows) == ([rows[0], rows[1], rows[3]], 1)


@pytest.mark.parametrize(
    ("duplicates", "places"), [("keep", [0, 1, 2, 3, 4]), ("first", [1, 2, 4]), ("last", [1, 3, 4])]
)
def test_repeats_at_other_times(duplicates, places):
    rows = interactions_of(("u", "a", 5), ("u", "b", 9), ("u", "a", 2), ("u", "a", 7), ("v", "a", 3))
    assert choose_among_repeats(rows, duplicates) == ([rows[place] for place in places], 2)


def test_repeats_are_chosen_before_the_core(tmp_path, prepare_rows):
    rows = interactions_of(("u", "a", 1), ("u", "a", 2), ("v", "b", 1), ("v", "c", 2), ("t", "b", 1), ("t", "c", 2))
    made = prepare_rows(tmp_path / "kept", rows, core=2)
    assert (made.users, made.repeats) == (3, 1) and "1 repeats of user and item at other times kept" in made.summary()
    made = prepare_rows(tmp_path / "last", rows, core=2, duplicates="last")
    assert (made.users, made.repeats, made.duplicates) == (2, 1, "last")
    assert "1 repeats of user and item at other times dropped (--duplicates=last)" in made.summary()


def test_low_ratings_do_not_count_and_missing_ones_are_named(tmp_path, prepare_rows):
    rows = interactions_of(("u", "a", 1, 4), ("u", "b", 2, 3.5), ("v", "a", 1, None))
    assert prepare_rows(tmp_path / "all", rows).interactions == 3
    assert prepare_rows(tmp_path / "some", rows[:2], min_rating=4.0).interactions == 1
    with pytest.raises(InputError) as caught:
        prepare_rows(tmp_path / "shop", rows, min_rating=4.0)
    remedy = "mend or remove the line, or leave out --min_rating"
    assert str(caught.value) == f"raw:3: has no rating, and --min_rating=4 needs one; {remedy}"
    with pytest.raises(InputError, match="--min_rating=nan: expected a finite number"):
        prepare_rows(tmp_path / "shop", rows, min_rating=float("nan"))


def refuse_to_read(folder):
    raise AssertionError("the raw files were read before --output was looked at")


def test_an_output_that_is_not_empty_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setitem(SOURCES, "rows", Source("rows", refuse_to_read))
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError) as caught:
        prepare("rows", tmp_path, tmp_path, core=1, min_rating=0.0)
    assert str(caught.value) == f"--output={tmp_path}: exists and is not empty; remove it or choose another folder"
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("name", ["file/shop", "x" * 300])
def test_an_output_that_cannot_be_made(tmp_path, monkeypatch, name):
    monkeypatch.setitem(SOURCES, "rows", Source("rows", refuse_to_read))
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="--output=.*: cannot be"):
        prepare("rows", tmp_path, tmp_path / name, core=1, min_rating=0.0)


def test_nothing_left_after_filtering(tmp_path, prepare_rows):
    with pytest.raises(InputError, match="--core=5 --min_rating=0: none of the 1 interactions is left.*lower them"):
        prepare_rows(tmp_path / "shop", interactions_of(("u", "a", 1)), core=5)
    assert not (tmp_path / "shop").exists()
