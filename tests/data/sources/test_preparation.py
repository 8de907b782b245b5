"""What all raw formats share: filters in their order, splits, the card, and a folder that is whole or absent."""

import hashlib
import json
import os
import signal
import subprocess
import sys

import pytest

from idgenrec_jax.data.dataset import load_dataset
from idgenrec_jax.data.sources import SOURCES, preparation
from idgenrec_jax.data.sources.preparation import Filters, prepare
from idgenrec_jax.data.sources.source import Interaction, Items, RawData, Source
from idgenrec_jax.errors import InputError

FIELDS = {"a": {"title": "A"}, "b": {"title": "Bé", "brand": ""}}


@pytest.fixture
def prepare_rows(tmp_path, monkeypatch):
    """Prepares interactions (user, item, time, rating, part) as if a raw format had given them."""
    (tmp_path / "raw").write_text("events")

    def run(output, rows, fields=FIELDS, records=None, raw=None, **filters):
        def read_items(reading, wanted, names):
            for item, texts in records or fields.items():
                if item in wanted:
                    yield item, {name: texts[name] for name in names if texts.get(name)}

        def recognise(files):
            items = Items({"title": True, "brand": True, "price": False}, read_items)
            return RawData(
                lambda reading: (Interaction(*row) for row in rows), items, "rows", [files[0].path], **(raw or {})
            )

        monkeypatch.setitem(SOURCES, "rows", Source("rows", "rows", recognise, "none"))
        return prepare("rows", [tmp_path / "raw"], output, Filters(**{"user_core": 1, "item_core": 1} | filters))

    return run


def sequences(folder):
    return dict(line.split(maxsplit=1) for line in (folder / "user_sequence.txt").read_text().splitlines())


def json_lines(path):
    return list(map(json.loads, path.read_text(encoding="utf-8").splitlines()))


def test_the_folder_can_be_loaded_and_says_how_it_was_made(tmp_path, prepare_rows, caplog):
    rows = [("u", "b", 3.0), ("u", "a", 1.0), ("u", "a", 2.0), ("v", "c", 1.0), ("v", "a", 1.0), ("v", "b", 5.0)]
    output = tmp_path / "deep" / "shop"
    made = prepare_rows(output, rows, duplicates="keep")
    dataset = load_dataset(output)
    assert dataset.items == ("a", "b", "c") and dataset.item_texts == ("title: A", "title: Bé", "")
    assert dataset.sequences[0].tolist() == [0, 0, 1] and len(dataset.sequences[1]) == 3
    assert json_lines(output / "items.jsonl") == [
        {"id": "a", "title": "A", "brand": ""}, {"id": "b", "title": "Bé", "brand": ""}, {"id": "c"},
    ]  # fmt: skip
    card = json.loads((output / "dataset_card.json").read_text())
    assert card["tied_interactions"] == made.tied_interactions == 2 and "hash" in card["tie_rule"]
    assert (card["source"], card["licence"], card["order"], card["texts"]) == ("rows", "none", "time", "plain")
    assert (made.users, made.items, made.interactions, made.items_without_text) == (2, 3, 6, 1)
    digest = hashlib.sha256(b"events").hexdigest()
    assert card["files"] == [{"name": "raw", "bytes": 6, "sha256": digest}]
    assert "1 of 3 items have no text (c)" in caplog.text
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["shop"], "no temporary folder is left"
    assert "2 of them share user and time with another" in made.summary()
    # The same files make the same bytes.
    prepare_rows(tmp_path / "again", rows, duplicates="keep")
    for path in output.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()


def test_an_event_that_is_recorded_twice_is_one(tmp_path, prepare_rows):
    # The last event of u stands twice in the file: kept, the history would end in its own target.
    rows = [("u", "a", 1), ("u", "b", 2), ("u", "c", 3), ("u", "c", 3), ("v", "c", 3), ("v", "c", 3.0), ("v", "a", 5)]
    made = prepare_rows(tmp_path / "shop", rows, duplicates="keep")
    assert sequences(tmp_path / "shop") == {"u": "a b c", "v": "c a"}
    assert (made.exact_repeats, made.repeats, made.interactions) == (2, 0, 5)
    assert "2 exact repeats (same user, item and time; 28.6%) dropped" in made.summary()
    # It counts once toward the core, too.
    core = [("u", "a", 1), ("u", "c", 2), ("v", "a", 1), ("v", "c", 2)]
    rows = [*core, ("u", "b", 3), ("u", "b", 3), ("w", "a", 1), ("w", "a", 1)]
    prepare_rows(tmp_path / "core", rows, user_core=2, item_core=2)
    assert set(sequences(tmp_path / "core")) == {"u", "v"}


def test_repeats_are_chosen_before_the_core(tmp_path, prepare_rows):
    rows = [("u", "a", 1), ("u", "a", 2), ("v", "b", 1), ("v", "c", 2), ("t", "b", 1), ("t", "c", 2)]
    core = {"user_core": 2, "item_core": 2}
    made = prepare_rows(tmp_path / "kept", rows, **core, duplicates="keep")
    assert (made.users, made.repeats) == (3, 1)
    assert "1 repeats of user and item at other times (16.7%) kept" in made.summary()
    made = prepare_rows(tmp_path / "last", rows, **core, duplicates="last")
    assert (made.users, made.repeats, made.duplicates) == (2, 1, "last")
    assert "(16.7%) dropped (--duplicates=last)" in made.summary()
    # The first of them counts where nothing is said, and five of a user and an item.
    made = prepare_rows(tmp_path / "first", [("u", "a", 1), ("u", "b", 2), ("u", "a", 3)])
    assert made.duplicates == "first" and sequences(tmp_path / "first") == {"u": "a b"}
    five = [(f"u{user}", f"i{item}", item) for user in range(5) for item in range(5)]
    made = prepare_rows(tmp_path / "five", [*five, ("w", "i0", 1)], user_core=None, item_core=None)
    assert (made.user_core, made.item_core, made.users, made.items) == (5, 5, 5, 5)


def test_ratings_and_times(tmp_path, prepare_rows):
    rows = [("u", "a", 100, 4), ("u", "b", 200, 3.5), ("v", "a", 300, None)]
    assert prepare_rows(tmp_path / "all", rows).interactions == 3
    assert prepare_rows(tmp_path / "rated", rows, min_rating=4.0).interactions == 1
    # From the first moment on, before the second.
    made = prepare_rows(tmp_path / "span", rows, since="100", until="300")
    assert made.interactions_by_filter == {
        "read": 3, "rated": 3, "in time": 2, "without exact repeats": 2, "without repeats": 2, "in the core": 2,
    }  # fmt: skip
    with pytest.raises(InputError, match="--min_rating=nan: expected a finite number"):
        prepare_rows(tmp_path / "none", rows, min_rating=float("nan"))
    for since, until, found in (
        ("200", "100", "--from=200 --to=100: expected two moments, the earlier one first"),
        ("soon", "", "--from=soon: expected a date such as 2018-07-01"),
        ("", "2020-13-01", "--to=2020-13-01: expected a date"),
    ):
        with pytest.raises(InputError, match=found):
            prepare_rows(tmp_path / "none", rows, since=since, until=until)


@pytest.mark.parametrize(
    "moment",
    [
        "2018-07-01", "20180701", "1530403200", "1530403200000", "2018-07-01T02:00+02:00", "2018-07-01T00:00:00Z",
        " 1530403200.0",
    ],
)  # fmt: skip
def test_moments(tmp_path, prepare_rows, moment):
    rows = [("u", "a", 1530403199), ("u", "b", 1530403200)]
    prepare_rows(tmp_path / "from", rows, since=moment)
    assert sequences(tmp_path / "from") == {"u": "b"}
    prepare_rows(tmp_path / "to", rows, until=moment)
    assert sequences(tmp_path / "to") == {"u": "a"}


def test_a_year_is_its_beginning(tmp_path, prepare_rows):
    prepare_rows(tmp_path / "out", [("u", "a", 1514764799), ("u", "b", 1514764800)], since="2018")
    assert sequences(tmp_path / "out") == {"u": "b"}


def test_items_without_text_go_before_the_core(tmp_path, prepare_rows):
    # Without c, user w has one item, and then b one buyer.
    rows = [("w", "c", 1), ("w", "b", 2), ("u", "a", 1), ("u", "b", 2), ("v", "a", 1), ("v", "d", 2), ("v", "e", 3)]
    fields = {"a": {"title": "A"}, "b": {"brand": "B"}, "d": {"title": "!!!"}, "e": {"title": "One two"}}
    made = prepare_rows(tmp_path / "kept", rows, fields)
    assert (made.items, made.items_without_text) == (5, 2), "marks alone are no text"
    made = prepare_rows(tmp_path / "dropped", rows, fields, missing_text="drop", user_core=2)
    assert sequences(tmp_path / "dropped") == {"u": "a b", "v": "a e"} and made.items_without_text == 0
    assert made.interactions_by_filter["with text"] == 5
    prepare_rows(tmp_path / "titled", rows, fields, min_title_words=1)
    assert sequences(tmp_path / "titled") == {"u": "a", "v": "a e"}
    # The title counts even where it is not written.
    prepare_rows(tmp_path / "long", rows, fields, min_title_words=2, text_columns=("brand",))
    assert sequences(tmp_path / "long") == {"v": "e"}


def test_a_title_that_is_not_there_has_no_words(tmp_path, monkeypatch, prepare_rows):
    monkeypatch.setattr(preparation, "TITLE", "name")
    with pytest.raises(InputError, match="--min_title_words: needs the field name, .* have title, brand, price; leave"):
        prepare_rows(tmp_path / "out", [("u", "a", 1)], min_title_words=1)


def test_text_fields(tmp_path, prepare_rows):
    rows = [("u", "a", 1), ("u", "b", 2)]
    # An item may be described several times: what comes first stays, what it lacks is filled.
    first, second = {"title": "e\u0301tude in blue"}, {"title": "", "price": "3"}
    records = [("a", first), ("a", second), ("a", {"title": "X"}), ("b", {})]
    asked = {"text_columns": ("price", "title", "price"), "max_characters": 7}
    made = prepare_rows(tmp_path / "out", rows, records=records, **asked)
    assert made.text_fields == ["price", "title"]
    assert json_lines(tmp_path / "out" / "items.jsonl") == [
        {"id": "a", "price": "3", "title": "e\u0301tude"}, {"id": "b", "price": "", "title": ""},
    ]  # fmt: skip
    for asked in (("colour",), ("title=brand",), ("",)):
        with pytest.raises(
            InputError, match=f"--text_columns: found '{asked[0]}', expected some of title, brand, price"
        ):
            prepare_rows(tmp_path / "none", rows, text_columns=asked)


def test_keys_with_blanks_are_kept(tmp_path, prepare_rows):
    rows = [("Ann Lee", "007", 1), ("Ann Lee", "red mug", 2), ("ü", "007", 3)]
    prepare_rows(tmp_path / "out", rows)
    assert json_lines(tmp_path / "out" / "user_sequence.jsonl") == [
        {"user": "Ann Lee", "items": ["007", "red mug"]}, {"user": "ü", "items": ["007"]},
    ]  # fmt: skip
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "dataset_card.json", "items.jsonl", "user_sequence.jsonl",
    ]  # fmt: skip


def test_a_split_by_time(tmp_path, prepare_rows):
    # An event at a boundary belongs to what begins there; a publisher's parts say nothing here.
    rows = [("u", item, time, None, part) for item, time, part in (
        ("a", 99, 2), ("b", 100, 0), ("c", 150, 0), ("d", 200, 1), ("e", 300, 0))] + [("v", "e", 250)]  # fmt: skip
    made = prepare_rows(tmp_path / "out", rows, split="time:100,200", raw={"has_split": True})
    assert json_lines(tmp_path / "out" / "user_sequence.jsonl") == [
        {"user": "u", "items": ["a", "b", "c", "d", "e"], "train": 1, "validation": 2},
        {"user": "v", "items": ["e"], "train": 0, "validation": 0},
    ]
    assert made.split.moments == [100, 200]
    assert made.split.description == "by time: training before 100, validation before 200, the rest test"
    for split in ("time", "time:1", "time:2,1", "time:1,1", "time:,5", "time:a,b", "half", "time:1,2,3"):
        with pytest.raises(InputError, match="^--split=.*: expected"):
            prepare_rows(tmp_path / "none", rows, split=split)


def test_a_publishers_split(tmp_path, prepare_rows):
    rows = [("u", "a", 3, None, 0), ("u", "b", 2, None, 1), ("u", "c", 1, None, 2), ("u", "a", 4, None, 2)]
    made = prepare_rows(tmp_path / "given", rows, raw={"has_split": True}, user_core=None, item_core=None)
    assert (made.duplicates, made.user_core, made.split.name) == ("keep", 1, "given")
    assert json_lines(tmp_path / "given" / "user_sequence.jsonl") == [
        {"user": "u", "items": ["a", "b", "c", "a"], "train": 1, "validation": 1}
    ]
    made = prepare_rows(tmp_path / "own", rows, raw={"has_split": True}, split="leave_one_out")
    assert sequences(tmp_path / "own") == {"u": "c b a"} and made.duplicates == "first"
    with pytest.raises(InputError, match="--split=given: these files hold no split of the publisher; leave it out"):
        prepare_rows(tmp_path / "none", rows, split="given")


def test_files_without_times(tmp_path, prepare_rows):
    rows = [("u", "b", 1), ("u", "a", 2)]
    made = prepare_rows(tmp_path / "out", rows, raw={"has_times": False})
    assert made.tied_interactions is None and "order of the files" in made.split.description
    assert "order: the order of the files, which hold no times" in made.summary()
    for filters in ({"since": "5"}, {"until": "2020"}, {"split": "time:1,2"}):
        with pytest.raises(InputError, match="--from, --to and --split=time: need times, and these files have none"):
            prepare_rows(tmp_path / "none", rows, raw={"has_times": False}, **filters)


@pytest.mark.parametrize(
    ("rows", "filters", "found"),
    [
        ([("u", "a", 1)], {"user_core": None, "item_core": None}, "--user_core=5 --item_core=5: none .*; lower them"),
        ([("u", "a", 1, 2.0)], {"min_rating": 3.0}, r"none of .* is left \(read 1, rated 0, .*change the filter that"),
        ([("u", "a", 1)], {"since": "5"}, r"none of .*read 1, rated 1, in time 0"),
        ([("u", "x", 1)], {"missing_text": "drop"}, r"none of .*with text 0"),
        ([], {}, "--input: holds no interaction that can be read, but no records"),
    ],
)
def test_nothing_left(tmp_path, prepare_rows, rows, filters, found):
    with pytest.raises(InputError, match=found):
        prepare_rows(tmp_path / "shop", rows, **filters)
    assert not (tmp_path / "shop").exists()


def refuse_to_read(files):
    raise AssertionError("the raw files were read before --output was looked at")


def test_an_output_that_is_not_empty_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setitem(SOURCES, "rows", Source("rows", "rows", refuse_to_read))
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError) as caught:
        prepare("rows", [tmp_path], tmp_path, Filters())
    assert str(caught.value) == f"--output={tmp_path}: exists and is not empty; remove it or choose another folder"
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("name", ["file/shop", "x" * 300])
def test_an_output_that_cannot_be_made(tmp_path, monkeypatch, name):
    monkeypatch.setitem(SOURCES, "rows", Source("rows", "rows", refuse_to_read))
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="--output=.*: cannot be"):
        prepare("rows", [tmp_path], tmp_path / name, Filters())


def test_an_error_while_it_is_written_leaves_nothing(tmp_path, prepare_rows, monkeypatch):
    def fail(card):
        raise RuntimeError("in the middle")

    # The card is the last of the files.
    monkeypatch.setattr("idgenrec_jax.data.sources.data_folder.asdict", fail)
    with pytest.raises(RuntimeError, match="in the middle"):
        prepare_rows(tmp_path / "new" / "shop", [("u", "a", 1)])
    assert list((tmp_path / "new").iterdir()) == []


KILLED = """
import os, signal, sys
from idgenrec_jax.data.sources import data_folder
from idgenrec_jax.data.sources.preparation import Filters, prepare
data_folder.asdict = lambda card: os.kill(os.getpid(), signal.SIGKILL)
prepare("movielens", [sys.argv[1]], sys.argv[2], Filters(user_core=1, item_core=1))
"""


def test_a_killed_preparation_leaves_no_folder(tmp_path):
    (tmp_path / "ratings.csv").write_text("userId,movieId,rating,timestamp\n1,2,3,4\n")
    output = tmp_path / "new" / "shop"
    command = [sys.executable, "-c", KILLED, str(tmp_path), str(output)]
    assert subprocess.run(command, capture_output=True, check=False).returncode == -signal.SIGKILL
    assert not output.exists() and len(os.listdir(output.parent)) == 1
    # What it left half written goes when the next one succeeds.
    prepare("movielens", [tmp_path], output, Filters(user_core=1, item_core=1))
    assert os.listdir(output.parent) == ["shop"]


def test_encodings_that_nobody_knows(tmp_path, prepare_rows):
    with pytest.raises(InputError, match="--encoding=klingon: not known; expected the name of an encoding"):
        prepare_rows(tmp_path / "out", [("u", "a", 1)], encoding="klingon")


def test_an_unknown_format_is_told_what_is_known_and_how_to_go_on(tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "plays.csv").write_text("listener_id,song_id,played_at\n1,2,2020-01-01\n")
    (raw / "user_names.csv").write_text("name\nx\n")
    with pytest.raises(InputError) as caught:
        prepare("auto", [raw], tmp_path / "out", Filters())
    message = str(caught.value)
    assert message.startswith("--source=auto: does not know plays.csv (values separated by ',': listener_id, song_id, ")
    for name, source in SOURCES.items():
        assert f"{name} ({source.help})" in message
    assert "--source=table --input=" in message and "\n" not in message
    with pytest.raises(InputError, match="--source: found 'amazn', expected one of .*nearest: amazon"):
        prepare("amazn", [raw], tmp_path / "out", Filters())
    (raw / "plays.csv").write_text("reviewerID,asin\n")
    (raw / "r.json").write_text('{"reviewerID": "u", "asin": "a", "unixReviewTime": 1}\n')
    with pytest.raises(InputError, match="they look like --source=amazon"):
        prepare("movielens", [raw], tmp_path / "out", Filters())
