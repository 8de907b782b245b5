"""The Amazon converter on tiny raw files of both generations."""

import gzip
import json

import pytest

from idgenrec_jax.data.dataset import load_dataset
from idgenrec_jax.data.sources.preparation import prepare
from idgenrec_jax.errors import InputError

REVIEWS = [
    {"reviewerID": "u", "asin": "B2", "unixReviewTime": 30, "overall": 5.0},
    {"reviewerID": "u", "asin": "B1", "unixReviewTime": 10, "overall": 4.0},
    {"reviewerID": "v", "asin": "B1", "unixReviewTime": 20, "overall": 2.0},
    {"reviewerID": "u", "asin": "B3", "unixReviewTime": 20, "overall": 3.0},
]
METADATA = [
    {"asin": "B1", "title": "Pens &amp; <b>Ink</b>", "brand": "Nib", "categories": [["Office", "Pens"], ["Ink"]]},
    {"asin": "B2", "title": "Paper", "category": ["Office", "Paper"], "description": ["Smooth.", "", "White."]},
    {"asin": "B9", "title": "never reviewed"},
]


def write_raw(folder, reviews=REVIEWS, metadata=METADATA):
    folder.mkdir(exist_ok=True)
    (folder / "Office_5.json").write_text("".join(json.dumps(record) + "\n" for record in reviews))
    # The metadata of 2014 are Python literals.
    literals = "".join(f"{record!r}\n" for record in metadata)
    (folder / "meta_Office.json.gz").write_bytes(gzip.compress(literals.encode()))
    return folder


def message_of(folder, tmp_path, min_rating=0.0):
    with pytest.raises(InputError) as caught:
        prepare("amazon", folder, tmp_path / "out", core=1, min_rating=min_rating)
    assert not (tmp_path / "out").exists() and "\n" not in str(caught.value)
    return str(caught.value)


def test_conversion(tmp_path, caplog):
    made = prepare("amazon", write_raw(tmp_path / "raw"), tmp_path / "out", core=1, min_rating=0.0)
    dataset = load_dataset(tmp_path / "out")
    assert dataset.items == ("B1", "B2", "B3") and dataset.users == ("u", "v")
    assert [sequence.tolist() for sequence in dataset.sequences] == [[0, 2, 1], [0]]
    assert dataset.item_texts == (
        "title: Pens & Ink; brand: Nib; categories: Office, Pens, Ink",
        "title: Paper; categories: Office, Paper; description: Smooth. White.",
        "",
    )
    assert "lacks 1 of 3 items (B3), which get no text" in caplog.text
    assert (made.raw_interactions, made.interactions) == (4, 4)


def test_low_ratings_are_left_out(tmp_path):
    made = prepare("amazon", write_raw(tmp_path / "raw"), tmp_path / "out", core=1, min_rating=4.0)
    assert (made.users, made.items, made.interactions, made.raw_interactions) == (1, 2, 2, 4)


@pytest.mark.parametrize(
    ("record", "found"),
    [
        ({"asin": "B1", "unixReviewTime": 1}, "reviewerID is None, not a name without blanks"),
        ({"reviewerID": "u", "asin": "B 1", "unixReviewTime": 1}, "asin is 'B 1', not a name without blanks"),
        ({"reviewerID": "u", "asin": "B1", "unixReviewTime": "May"}, "unixReviewTime is 'May', not a number"),
        ({"reviewerID": "\ud800", "asin": "B1"}, "reviewerID is '\\ud800', not a name without blanks"),
        ({"reviewerID": "u", "asin": "B1", "unixReviewTime": True}, "unixReviewTime is True, not a number"),
        ({"reviewerID": "u", "asin": "B1"}, "unixReviewTime is None, not a number"),
        (
            {"reviewerID": "u", "asin": "B1", "unixReviewTime": float("nan")},
            "unixReviewTime is nan, not a finite number below 2**63",
        ),
        (
            {"reviewerID": "u", "asin": "B1", "unixReviewTime": float("inf")},
            "unixReviewTime is inf, not a finite number below 2**63",
        ),
        (
            {"reviewerID": "u", "asin": "B1", "unixReviewTime": 10**400},
            f"unixReviewTime is 1{'0' * 56}..., not a finite number below 2**63",
        ),
        (
            {"reviewerID": "u", "asin": "B1", "unixReviewTime": 1, "overall": [5]},
            "overall is [5], not a number",
        ),
    ],
)
def test_faulty_reviews_are_named(tmp_path, record, found):
    folder = write_raw(tmp_path / "raw", reviews=[REVIEWS[0], record])
    message = message_of(folder, tmp_path, min_rating=1.0)
    assert message == f"{folder / 'Office_5.json'}:2: {found}; mend or remove the line"


@pytest.mark.parametrize("rating", [None, "", "N/A", float("nan")])
def test_a_missing_rating_only_matters_where_one_is_needed(tmp_path, rating):
    folder = write_raw(tmp_path / "raw", reviews=[REVIEWS[0], REVIEWS[1] | {"overall": rating}])
    assert prepare("amazon", folder, tmp_path / "all", core=1, min_rating=0.0).interactions == 2
    expected = "has no rating, and --min_rating=1 needs one; mend or remove the line, or leave out --min_rating"
    assert message_of(folder, tmp_path, min_rating=1.0) == f"{folder / 'Office_5.json'}:2: {expected}"


@pytest.mark.parametrize(
    "line",
    ["[" * 100_000, "{'a': " * 5000, "-" * 100_000 + "1", "1" + "+1" * 100_000, "{[]: 1}", "{'a': '\\ud", "9" * 5000],
)
def test_lines_that_python_cannot_follow(tmp_path, line):
    folder = write_raw(tmp_path / "raw")
    (folder / "Office_5.json").write_text(line + "\n")
    assert message_of(folder, tmp_path).startswith(f"{folder / 'Office_5.json'}:1: not JSON nor a Python literal; ")


def test_the_layout_of_2023_is_called_by_its_name(tmp_path):
    review = {"rating": 5.0, "asin": "B1", "parent_asin": "B0", "user_id": "u", "timestamp": 1588687728923}
    message = message_of(write_raw(tmp_path / "raw", reviews=[review]), tmp_path)
    assert message.startswith(f"{tmp_path / 'raw' / 'Office_5.json'}:1: this looks like the layout of 2023 ")
    metadata = {"parent_asin": "B0", "title": "Pen", "store": "Nib"}
    folder = write_raw(tmp_path / "other", metadata=[metadata])
    assert message_of(folder, tmp_path).startswith(f"{folder / 'meta_Office.json.gz'}:1: this looks like the layout of")


def test_missing_values_spelt_as_text_are_blank(tmp_path, caplog):
    caplog.set_level("INFO", "absl")
    metadata = [{"asin": "B1", "title": "Pen", "brand": "NaN", "description": ["null"]}]
    prepare("amazon", write_raw(tmp_path / "raw", metadata=metadata), tmp_path / "out", core=1, min_rating=0.0)
    assert load_dataset(tmp_path / "out").item_texts == ("title: Pen", "", "")
    assert "n/a, na, nan, nat, nil, none, null, undefined): 2, written as blank" in caplog.text


def test_a_line_that_is_no_record(tmp_path):
    folder = write_raw(tmp_path / "raw")
    (folder / "Office_5.json").write_text('{"reviewerID": \n')
    assert message_of(folder, tmp_path).startswith(f"{folder / 'Office_5.json'}:1: not JSON nor a Python literal")
    (folder / "Office_5.json").write_text("[1]\n")
    assert message_of(folder, tmp_path).startswith(f"{folder / 'Office_5.json'}:1: a list, not a record")


def test_missing_folder_and_files(tmp_path):
    assert message_of(tmp_path / "none", tmp_path).startswith(f"--input={tmp_path / 'none'}: no such folder; ")
    folder = write_raw(tmp_path / "raw")
    (folder / "meta_Office.json.gz").unlink()
    message = message_of(folder, tmp_path)
    assert message.startswith(f"--input={folder}: found 1 review files and 0 metadata files; --input is a folder with")
