"""Every reader of a user's file, on 2,000 odd files each: it gives a value or one line that says what is wrong.

A preparation reads and writes several files, and takes four times as long: 500 of each format.

A reader is added by a line in READERS.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from absl import logging
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from idgenrec_jax.data.dataset import load_dataset
from idgenrec_jax.data.sample import sample_tokenizer
from idgenrec_jax.data.sources.preparation import Filters, prepare
from idgenrec_jax.data.sources.table import TableFlags
from idgenrec_jax.data.templates import load_templates
from idgenrec_jax.errors import InputError
from idgenrec_jax.ids.table import load_table, save_table

NUMBER_OF_FILES = 2000
RAW = 500
"""Odd files of a reader that makes a data folder of each."""
TOKENIZER = sample_tokenizer()

ITEMS = '{"id": "a", "title": "Pen", "price": 3}\n{"id": "b", "title": "Ink", "categories": [["Office"], "Ink"]}'
SEQUENCES = "u a b a\nv b a b"
JSON_SEQUENCES = """{"user": "u", "items": ["a", "b", "a"], "train": 1, "validation": 1}
{"user": "v w", "items": ["b", "a", "b"], "train": 0, "validation": 2}"""
REVIEWS = """{"reviewerID": "u", "asin": "a", "unixReviewTime": 10, "overall": 5.0}
{"reviewerID": "v", "asin": "b", "unixReviewTime": 20}"""
METADATA = """{'asin': 'a', 'title': 'Pen', 'categories': [['Office', 'Pens']]}
{"asin": "b", "title": "Ink", "brand": "N/A", "description": ["Blue.", "Wet."]}"""
RATINGS = "userId,movieId,rating,timestamp\n1,7,4.5,10\n2,8,3,11"
LOG = 'user;item;when\nu;a;2020-01-01\nv;"b";2020-01-02T10:00:00Z'
NAMES = 'item;title;tags\na;"Pen; red";"[1, 2]"\nb;Ink;<b>blue</b>'
TABLE = TableFlags("user", "item", "when", "iso", item_key="item", text_columns=("title", "tags"))
IDS = '{"item": "a", "id": "red pen", "by": "hand", "on": 3}\n{"item": "b", "id": "ink", "by": "hand"}'
MOVIES = 'movieId,title,genres\n7,"Alien, The (1979)",Horror|Sci-Fi\n8,Plain (1990),(no genres listed)'


@dataclass(frozen=True)
class Reader:
    """`read` gets a folder in which `file` holds odd variants of `good` and every other file is as in `others`."""

    file: str
    good: str
    read: Callable[[Path], Any]
    others: dict[str, str] = field(default_factory=dict)
    number_of_files: int = NUMBER_OF_FILES


def read_data_folder(folder):
    dataset = load_dataset(folder)
    for text in (*dataset.users, *dataset.items, *dataset.item_texts):
        assert text.encode("utf-8") is not None and len(text.splitlines()) <= 1


def read_raw_files(folder, source, table=None):
    """What can be prepared can be loaded, unless no item has a text."""
    output = folder / "out"
    shutil.rmtree(output, ignore_errors=True)
    files = sorted(path for path in folder.iterdir() if path.is_file())
    if table is not None:
        files, table = [folder / "log.csv"], replace(table, items=str(folder / "items.csv"))
    prepare(source, files, output, Filters(user_core=1, item_core=1), table=table)
    if not (output / "user_sequence.txt").exists():
        return  # Keys with blanks.
    try:
        read_data_folder(output)
    except InputError as error:
        assert "have blank text" in str(error)


def read_ids(path):
    table = load_table(path, ("a", "b"), TOKENIZER)
    save_table(table, path.with_name("saved.jsonl"))
    assert load_table(path.with_name("saved.jsonl"), ("a", "b"), TOKENIZER) == table


READERS = {
    "items": Reader("items.jsonl", ITEMS, read_data_folder, {"user_sequence.txt": SEQUENCES}),
    "plain texts": Reader(
        "item_plain_text.txt", "a red pen\nb ink", read_data_folder, {"user_sequence.txt": SEQUENCES}
    ),
    "sequences": Reader("user_sequence.txt", SEQUENCES, read_data_folder, {"items.jsonl": ITEMS}),
    "JSON sequences": Reader(
        "user_sequence.jsonl", JSON_SEQUENCES, read_data_folder, {"items.jsonl": ITEMS}, number_of_files=400
    ),
    "amazon reviews": Reader(
        "r_5.json", REVIEWS, partial(read_raw_files, source="amazon"), {"meta_r.json": METADATA}, RAW
    ),
    "amazon metadata": Reader(
        "meta_r.json", METADATA, partial(read_raw_files, source="amazon"), {"r_5.json": REVIEWS}, RAW
    ),
    "ratings": Reader("ratings.csv", RATINGS, partial(read_raw_files, source="movielens"), {"movies.csv": MOVIES}, RAW),
    "movies": Reader("movies.csv", MOVIES, partial(read_raw_files, source="movielens"), {"ratings.csv": RATINGS}, RAW),
    "table": Reader("log.csv", LOG, partial(read_raw_files, source="table", table=TABLE), {"items.csv": NAMES}, RAW),
    "items of a table": Reader(
        "items.csv", NAMES, partial(read_raw_files, source="table", table=TABLE), {"log.csv": LOG}, RAW
    ),
    "prompts": Reader(
        "prompts.txt",
        "sequential; seen; {user_id} bought {history}; {target}\n# note\nsequential; unseen; after {history}; {target}",
        lambda folder: load_templates(folder / "prompts.txt"),
    ),
    "IDs": Reader("ids.jsonl", IDS, lambda folder: read_ids(folder / "ids.jsonl")),
    "IDs as text": Reader("ids.txt", "a red pen\nb ink", lambda folder: read_ids(folder / "ids.txt")),
}

DEEP = 3000  # Python follows about a thousand levels.
NASTY = (
    "", " ", "\x00", "\x1b[0m", "\ufeff", "\u2028", "\x85", "\r", "é", "e\u0301", "\u0e01\u0e33", "\U0001f600", "'",
    '"', '""', ",", ";", ":", "#", "{", "}", "[", "]", "{}", "[]", "()", "null", "None", "nan", "NaN", "N/A",
    "Infinity", "-inf", "1e999", "true", "True", "-1", "0.5", "1_0", "٣", "9" * 30, "9" * 400, "9" * 5000,
    "0x" + "f" * 4000, "[" * DEEP, "{'a':" * DEEP, '{"a":' * DEEP, "-" * DEEP + "1", "1" + "+1" * DEEP, "{[]: 1}",
    r"\ud800", r"\u0000", r"\N{x}", r"\d", r"&#xD800;", "&amp;", "b''", "{history}", "{target}", "</s>", "a", "b", "u",
)  # fmt: skip
"""What has broken some reader somewhere, and what looks like it."""


LEAVES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=4), st.sampled_from(NASTY))
VALUES = st.one_of(
    LEAVES,
    st.lists(LEAVES | st.lists(LEAVES, max_size=2), max_size=2),
    st.dictionaries(st.text(max_size=2), LEAVES, max_size=2),
)
WRITERS = st.sampled_from([json.dumps, partial(json.dumps, ensure_ascii=False), repr])


def odd_records(good):
    """Records of the good file in which some values are others, written as JSON or as Python literals."""
    names = sorted({name for record in good for name in record}) + ["other", "\ud800", "a: b; c"]
    changes = st.dictionaries(st.sampled_from(names), VALUES, max_size=2)
    return st.builds(lambda record, change, write: write(record | change), st.sampled_from(good), changes, WRITERS)


def odd_lines(good):
    """Lines of the good file with something nasty somewhere in them, perhaps instead of what stood there."""

    def spoil(line, start, length, insertion):
        start = min(start, len(line))
        return line[:start] + insertion + line[start + length :]

    place = st.integers(0, max(map(len, good)))
    return st.builds(spoil, st.sampled_from(good), place, st.sampled_from([0, 1, 4, 1000]), st.sampled_from(NASTY))


def odd_files(good):
    """The bytes of good files in which one or two lines are odd: put between the others or instead of one."""
    kinds = [odd_lines(good), odd_lines(good), st.text(max_size=20)]
    if records := [json.loads(line) for line in good if line.startswith('{"')]:
        kinds.append(odd_records(records))
    odd = st.one_of(kinds).map(lambda line: line.encode("utf-8", "surrogatepass")) | st.binary(max_size=8)
    place = st.integers(0, len(good))

    def write(changes, newline):
        lines = [line.encode() for line in good]
        for start, length, line in changes:
            lines[start : start + length] = [line]
        return newline.join(lines)

    changes = st.lists(st.tuples(place, st.integers(0, 1), odd), min_size=1, max_size=2)
    files = st.builds(write, changes, st.sampled_from([b"\n", b"\r\n", b"\n\n"]))
    if len(records) < len(good):
        return files
    # A record that is put in beside the one it is like is a fault by itself; here each stands in its own place.
    in_place = st.tuples(*(odd_records([record]) for record in records))
    return files | in_place.map(lambda lines: "\n".join(lines).encode("utf-8", "surrogatepass"))


@pytest.fixture
def folder(tmp_path):
    """An empty folder, in memory where the system has one: thousands of files are written to it."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as path:
        yield Path(path)


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_a_value_or_one_line(folder, name):
    reader = READERS[name]
    for other, text in reader.others.items():
        (folder / other).write_text(text, encoding="utf-8")
    outcomes = {"value": 0, "error": 0}
    before = logging.get_verbosity()

    @settings(
        max_examples=reader.number_of_files,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(odd_files(reader.good.split("\n")))
    def read(content):
        (folder / reader.file).write_bytes(content)
        try:
            reader.read(folder)
            outcomes["value"] += 1
        except InputError as error:
            outcomes["error"] += 1
            message = " ".join(str(error).split())  # as the programs print it
            assert len(message.splitlines()) == 1 and message.encode("utf-8"), message

    try:
        logging.set_verbosity(logging.FATAL)
        read()
    finally:
        logging.set_verbosity(before)
    # Neither side of the fence is bare: files that can be read and files that cannot were among them.
    assert min(outcomes.values()) >= reader.number_of_files // 20, outcomes
