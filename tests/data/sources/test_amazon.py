"""Amazon on tiny raw files of all generations: 2014, 2018 and 2023, with and without metadata, and split in three."""

import gzip
import json

import pytest

from idgenrec_jax.data.dataset import load_dataset
from idgenrec_jax.data.sources.preparation import Filters, prepare
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


def prepared(folder, output, source="amazon", **filters):
    return prepare(source, [folder], output, Filters(**{"user_core": 1, "item_core": 1} | filters))


def items_of(folder):
    lines = (folder / "items.jsonl").read_text(encoding="utf-8").splitlines()
    return {record.pop("id"): record for record in map(json.loads, lines)}


def message_of(folder, tmp_path, **filters):
    with pytest.raises(InputError) as caught:
        prepared(folder, tmp_path / "refused", **filters)
    assert not (tmp_path / "refused").exists() and "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("source", ["amazon", "auto"])
def test_conversion(tmp_path, caplog, source):
    made = prepared(write_raw(tmp_path / "raw"), tmp_path / "out", source)
    dataset = load_dataset(tmp_path / "out")
    assert dataset.items == ("B1", "B2", "B3") and dataset.users == ("u", "v")
    assert [sequence.tolist() for sequence in dataset.sequences] == [[0, 2, 1], [0]]
    assert dataset.item_texts == (
        "title: Pens & Ink; brand: Nib; categories: Office, Pens, Ink",
        "title: Paper; categories: Office, Paper; description: Smooth. White.",
        "",
    )
    assert "1 of 3 items have no text (B3)" in caplog.text
    assert (made.source, made.interactions_by_filter["read"], made.interactions) == ("amazon", 4, 4)
    assert [file["name"] for file in made.files] == ["Office_5.json", "meta_Office.json.gz"]


def test_low_ratings_are_left_out(tmp_path):
    made = prepared(write_raw(tmp_path / "raw"), tmp_path / "out", min_rating=4.0)
    assert (made.users, made.items, made.interactions, made.interactions_by_filter["read"]) == (1, 2, 2, 4)


@pytest.mark.parametrize(
    ("record", "found"),
    [
        ({"asin": "B1", "unixReviewTime": 1}, "reviewerID is None, expected a key: a text or a whole number"),
        ({"reviewerID": "u", "asin": "B\n1", "unixReviewTime": 1}, r"asin is 'B\n1', expected a key without control"),
        ({"reviewerID": "u", "asin": "B1", "unixReviewTime": "May"}, "unixReviewTime is 'May', expected a number"),
        ({"reviewerID": "\ud800", "asin": "B1", "unixReviewTime": 1}, r"reviewerID is '\ud800', which holds half"),
        ({"reviewerID": "u", "asin": "B1", "unixReviewTime": True}, "unixReviewTime is True, expected a number"),
        ({"reviewerID": "u", "asin": "B1"}, "unixReviewTime is None, expected a number"),
        ({"reviewerID": "u", "asin": "B1", "unixReviewTime": float("nan")}, "unixReviewTime is nan, expected a finite"),
        ({"reviewerID": "u", "asin": "B1", "unixReviewTime": float("inf")}, "unixReviewTime is inf, expected a finite"),
        (
            {"reviewerID": "u", "asin": "B1", "unixReviewTime": 10**400},
            f"unixReviewTime is 1{'0' * 56}..., expected a finite number below 2**63",
        ),
        ({"reviewerID": "u", "asin": "B1", "unixReviewTime": 1, "overall": [5]}, "overall is [5], expected a number"),
    ],
)
def test_faulty_reviews_are_named(tmp_path, record, found):
    folder = write_raw(tmp_path / "raw", reviews=[REVIEWS[0], record])
    message = message_of(folder, tmp_path, min_rating=1.0)
    assert message.startswith(f"{folder / 'Office_5.json'}:2: {found}")
    assert message.endswith("; mend or remove the line, or leave such lines out with --bad_lines=skip")
    made = prepared(folder, tmp_path / "out", bad_lines="skip")
    assert (made.interactions, made.bad_lines) == (1, 1) and f"Office_5.json:2: {found}" in made.summary()


@pytest.mark.parametrize("rating", [None, "", "N/A", float("nan")])
def test_a_missing_rating_only_matters_where_one_is_needed(tmp_path, rating):
    folder = write_raw(tmp_path / "raw", reviews=[REVIEWS[0], REVIEWS[1] | {"overall": rating}])
    assert prepared(folder, tmp_path / "all").interactions == 2
    message = message_of(folder, tmp_path, min_rating=1.0)
    assert message.startswith(f"{folder / 'Office_5.json'}:2: has no rating, and --min_rating needs one; ")


def test_a_line_that_is_no_record(tmp_path):
    folder = write_raw(tmp_path / "raw")
    for line, found in (('{"reviewerID": ', "not JSON nor a Python literal"), ("[1]", "a list, expected an object")):
        (folder / "Office_5.json").write_text("\n".join([json.dumps(REVIEWS[0]), json.dumps(REVIEWS[1]), line]))
        assert message_of(folder, tmp_path).startswith(f"{folder / 'Office_5.json'}:3: {found}")


def test_faults_of_the_pages_of_2018(tmp_path):
    script = "var aPageStart = (new Date()).getTime();\nvar ue_t0=ue_t0||+new Date();"
    span = f'<span id="productTitle" class="{"a" * 2000}">'
    metadata = [
        {"asin": "B1", "title": script, "brand": "by\n    Foo", "category": ["Toys", "Kids &amp; Co", "</span>x", "y"]},
        {"asin": "B2", "title": f"{span}Kite</span>", "brand": "Visit Amazon's Jane Doe Page", "price": "$3.50"},
        {"asin": "B3", "title": "<!-- --> Cup", "brand": "Unknown brand", "price": ".a-box { color: red } 4" * 9},
        {
            "asin": "B3",
            "title": "",
            "brand": "",
            "category": [],
            "description": ["<style>p{}</style>Tea"],
            "date": "May 5",
        },
        {"asin": "B3", "title": "Mug", "brand": "Bo", "feature": ["Big"], "price": "4 or 5"},
    ]
    folder = write_raw(tmp_path / "raw", metadata=metadata)
    prepared(folder, tmp_path / "out")
    assert items_of(tmp_path / "out") == {
        "B1": {"title": "", "brand": "Foo", "categories": "Toys, Kids & Co", "description": ""},
        "B2": {"title": "Kite", "brand": "Jane Doe", "categories": "", "description": ""},
        # What a blank second record lacks is not lost, and a later one fills what was missing.
        "B3": {"title": "Cup", "brand": "Bo", "categories": "", "description": "Tea"},
    }
    # Prices, dates and features only where they are asked for.
    prepared(folder, tmp_path / "asked", text_columns=("price", "date", "features", "title"), max_characters=3)
    assert items_of(tmp_path / "asked") == {
        "B1": {"price": "", "date": "", "features": "", "title": ""},
        "B2": {"price": "$3.", "date": "", "features": "", "title": "Kit"},
        "B3": {"price": "4 o", "date": "May", "features": "Big", "title": "Cup"},
    }


def test_missing_values_spelt_as_text_are_blank(tmp_path):
    metadata = [{"asin": "B1", "title": "Pen", "brand": "NaN", "description": ["null"]}]
    prepared(write_raw(tmp_path / "raw", metadata=metadata), tmp_path / "out")
    assert load_dataset(tmp_path / "out").item_texts == ("title: Pen", "", "")
    assert items_of(tmp_path / "out")["B1"] == {"title": "Pen", "brand": "", "categories": "", "description": ""}


REVIEWS_OF_2023 = [
    {"rating": 5.0, "title": "fine", "asin": "B7", "parent_asin": "P1", "user_id": "AE", "timestamp": 1588687728923},
    {"rating": 4.0, "title": "good", "asin": "B8", "parent_asin": "P2", "user_id": "AE", "timestamp": 1588687728922},
]
METADATA_OF_2023 = [
    {
        "main_category": "All Beauty", "title": "Howard LC0008 Leather Conditioner", "average_rating": 4.8,
        "features": ["Soft", "Clean"], "description": [], "price": 9.99, "store": "Howard Products", "categories": [],
        "details": {"Package Dimensions": "7.1 x 5.5", "UPC": "617390882781"}, "parent_asin": "P1",
    },
    {
        "main_category": "Books", "title": "Yes to Tomatoes", "subtitle": "Paperback", "author": {"name": "Ann"},
        "description": ["<p>Red</p>"], "price": "None", "store": None, "categories": ["Books", "Food"],
        "details": {"Brand": "Yes To", "Date First Available": "May 1, 2016"}, "parent_asin": "P2",
    },
]  # fmt: skip


def write_2023(folder, metadata=METADATA_OF_2023):
    folder.mkdir()
    (folder / "Beauty.jsonl").write_text("".join(json.dumps(record) + "\n" for record in REVIEWS_OF_2023))
    (folder / "meta_Beauty.jsonl").write_text("".join(json.dumps(record) + "\n" for record in metadata))
    return folder


def test_the_layout_of_2023(tmp_path):
    folder = write_2023(tmp_path / "raw")
    made = prepared(folder, tmp_path / "out", "auto")
    assert made.source == "amazon" and "2023" in made.reason
    assert (tmp_path / "out" / "user_sequence.txt").read_text() == "AE P2 P1\n"
    assert items_of(tmp_path / "out") == {
        "P1": {
            "title": "Howard LC0008 Leather Conditioner", "subtitle": "", "author": "", "brand": "Howard Products",
            "categories": "All Beauty", "description": "", "features": "Soft Clean",
        },
        "P2": {
            "title": "Yes to Tomatoes", "subtitle": "Paperback", "author": "Ann", "brand": "Yes To",
            "categories": "Books, Food", "description": "Red", "features": "",
        },
    }  # fmt: skip
    prepared(folder, tmp_path / "asked", text_columns=("price", "date"))
    assert items_of(tmp_path / "asked") == {
        "P1": {"price": "9.99", "date": ""}, "P2": {"price": "", "date": "May 1, 2016"},
    }  # fmt: skip


def test_records_of_2023_of_other_types(tmp_path):
    odd = [{"parent_asin": "P1", "details": None, "author": "Bo", "categories": "Toys", "store": 7, "title": {"a": 1}}]
    prepared(write_2023(tmp_path / "raw", odd), tmp_path / "out", text_columns=("title", "author", "brand", "date"))
    assert items_of(tmp_path / "out")["P1"] == {"title": "", "author": "Bo", "brand": "7", "date": ""}


@pytest.mark.parametrize(
    ("lines", "order"),
    [
        (
            ["A1B2C3D4E5F6G,B00001P4ZH,5.0,30", "A1B2C3D4E5F6G,0143026860,2.0,10"],
            "user, item, rating, time, as in 2014",
        ),
        (
            ["B00001P4ZH,A1B2C3D4E5F6G,5.0,30", "0143026860,A1B2C3D4E5F6G,2.0,10"],
            "item, user, rating, time, as in 2018",
        ),
    ],
)
def test_ratings_without_a_header_are_told_by_the_product_numbers(tmp_path, lines, order):
    folder = tmp_path / "raw"
    folder.mkdir()
    (folder / "Office.csv").write_text("\n".join(lines) + "\n")
    made = prepared(folder, tmp_path / "out", "auto")
    assert order in made.reason and made.items_without_text == 2
    assert (tmp_path / "out" / "user_sequence.txt").read_text() == "A1B2C3D4E5F6G 0143026860 B00001P4ZH\n"
    # One faulty line does not make another format of it.
    (folder / "Office.csv").write_text("\n".join([*lines, lines[0][:20]]) + "\n")
    assert message_of(folder, tmp_path).startswith(f"{folder / 'Office.csv'}:3: found '{lines[0][:20]}', expected 4")


def test_ratings_whose_order_nothing_tells(tmp_path):
    (tmp_path / "ratings.csv").write_text("1,2,5.0,30\n3,4,5.0,30\n")
    assert "--source=amazon: found ratings.csv" in message_of(tmp_path / "ratings.csv", tmp_path)


def test_the_splits_published_for_2023_are_kept(tmp_path):
    folder = tmp_path / "raw"
    folder.mkdir()
    parts = {"test": "u,a,5.0,1000\n", "train": "u,b,5.0,2000\nu,c,4.0,1500\nv,a,1.0,9000\n", "valid": "u,d,5.0,1000\n"}
    for part, rows in parts.items():
        (folder / f"Office.{part}.csv").write_text("user_id,parent_asin,rating,timestamp\n" + rows)
    # No filter of ours unless it is asked for: that would make another set of it.
    made = prepare("auto", [folder], tmp_path / "out", Filters())
    assert (made.split.name, made.user_core, made.item_core, made.duplicates) == ("given", 1, 1, "keep")
    lines = list(map(json.loads, (tmp_path / "out" / "user_sequence.jsonl").read_text().splitlines()))
    assert lines == [
        {"user": "u", "items": ["c", "b", "d", "a"], "train": 2, "validation": 1},
        {"user": "v", "items": ["a"], "train": 1, "validation": 0},
    ]
    # Time alone, where leave-one-out is asked for.
    prepared(folder, tmp_path / "own", split="leave_one_out")
    found = (tmp_path / "own" / "user_sequence.txt").read_text().splitlines()
    assert [set(found[0].split()[1:3]), *found[0].split()[3:]] == [{"a", "d"}, "c", "b"]
    (folder / "Office.valid.csv").unlink()
    assert "expected one file of reviews or of ratings (or .train.csv" in message_of(folder, tmp_path)
    assert (
        prepare("amazon", [folder / "Office.train.csv"], tmp_path / "one", Filters(user_core=1, item_core=1)).users == 2
    )


def test_folders_with_other_files(tmp_path, caplog):
    folder = write_raw(tmp_path / "raw")
    (folder / "README.md").write_text("about")
    (folder / "brands.csv").write_text("a,b\n")
    made = prepared(folder, tmp_path / "out", "auto")
    assert made.interactions == 4 and "Office_5.json is read, and not brands.csv beside it" in caplog.text
    (folder / "meta_Office.json.gz").unlink()
    assert prepared(folder, tmp_path / "bare").items_without_text == 3
    assert "no item has a text" in caplog.text
    (folder / "More_5.json").write_text(json.dumps(REVIEWS[0]))
    message = message_of(folder, tmp_path)
    assert "--source=amazon: found More_5.json (JSON lines with reviewerID" in message
    assert "expected one file of reviews or of ratings" in message


def test_missing_folder_and_files(tmp_path):
    assert message_of(tmp_path / "none", tmp_path).startswith(f"--input={tmp_path / 'none'}: no such file or folder; ")
    folder = write_raw(tmp_path / "raw")
    (folder / "Office_5.json").unlink()
    assert message_of(folder, tmp_path).startswith("--source=amazon: found meta_Office.json.gz (JSON lines with asin, ")
