"""The Goodreads formats on tiny raw files."""

import json

import pytest

from idgenrec_jax.data.dataset import load_dataset
from idgenrec_jax.data.sources.preparation import Filters, prepare
from idgenrec_jax.errors import InputError

ALL = Filters(user_core=1, item_core=1)
ANN, BEA = "8842281e1d1347389f2ab93d60773d4d", "72fb0d0087d28c832f15776b0d936598"

# (user, book, rating, read, date): newest first, the first two in other offsets than in their order of local times.
SHELVED = [
    (ANN, "0024", 0, False, "Wed Jan 17 00:30:00 +0000 2007"),
    (ANN, "6066819", 5, True, "Tue Jan 16 17:00:00 -0700 2007"),
    (ANN, "53", 3, True, "Mon Jan 01 00:00:00 -0800 2007"),
    (BEA, "53", 4, True, "Sun Dec 31 23:59:59 +0000 2006"),
]
BOOKS = [
    {
        "book_id": "0024",
        "title": "The Unschooled Wizard (Sun Wolf, #1-2)",
        "title_without_series": "The Unschooled Wizard",
        "description": "Omnibus book club edition &amp; more",
        "authors": [{"author_id": "10333", "role": ""}],
        "popular_shelves": [
            {"count": "58", "name": "to-read"},
            {"count": "6", "name": "science-fiction"},
            {"count": "15", "name": "fantasy"},
            {"count": "7", "name": "books-i-own"},
            {"count": "6", "name": "owned"},
            {"count": "9", "name": "currently-reading"},
            {"count": "1", "name": "six"},
            {"count": "5", "name": "magic"},
            {"count": "4", "name": "pets"},
            {"count": "3", "name": "thread-art"},
        ],
    },
    {"book_id": "53", "title": "", "title_without_series": "Best Friends", "description": "", "popular_shelves": []},
]
TEXTS = {
    "0024": "title: The Unschooled Wizard (Sun Wolf, #1-2); "
    "categories: fantasy, science fiction, magic, pets, thread art; description: Omnibus book club edition & more",
    "53": "title: Best Friends",
    "6066819": "",
}
NUMBERED = "user_id,book_id,is_read,rating,is_reviewed\n0,2,1,5,0\n0,0,0,0,0\n948,1,1,4,1\n"
MAP = "book_id_csv,book_id\n0,0024\n1,53\n2,6066819\n"
NOTES = [
    "every book on a user's shelves is an interaction, whatever is_read says",
    "a rating of 0 is none: --min_rating leaves it out",
]


def lines(records):
    return "".join(json.dumps(record) + "\n" for record in records)


def interactions(rows=SHELVED, **more):
    names = ("user_id", "book_id", "rating", "is_read", "date_added")
    return lines({**dict(zip(names, row, strict=True)), "read_at": "", **more} for row in rows)


def reviews(rows=SHELVED[2:]):
    names = ("user_id", "book_id", "rating", "date_added")
    return lines(dict(zip(names, (*row[:3], row[4]), strict=True)) | {"review_text": "Good."} for row in rows)


def write_raw(folder, **contents):
    folder.mkdir()
    for name, text in {"goodreads_books.json": lines(BOOKS), **contents}.items():
        (folder / name).write_text(text)
    return folder


def sequences(dataset):
    return {
        user: [dataset.items[item] for item in sequence]
        for user, sequence in zip(dataset.users, dataset.sequences, strict=True)
    }


def test_interactions_with_times_and_books(tmp_path):
    contents = {
        "interactions.json": interactions(),
        "reviews.json": reviews(),
        "all.csv": NUMBERED,
        "book_id_map.csv": MAP,
        "genres.json": lines([{"book_id": "53", "genres": {"children": 3}}]),
    }
    card = prepare("auto", [write_raw(tmp_path / "raw", **contents)], tmp_path / "out", ALL)
    assert (card.source, card.interactions, card.order) == ("goodreads", 4, "time")
    assert card.reason == "interactions.json has user_id, book_id, date_added, rating"
    assert card.notes == [
        *NOTES,
        "reviews.json is not read: interactions.json is, with all interactions and times",
        "all.csv is not read: interactions.json is, with all interactions and times",
    ]
    dataset = load_dataset(tmp_path / "out")
    assert sequences(dataset) == {ANN: ["53", "6066819", "0024"], BEA: ["53"]}
    assert dict(zip(dataset.items, dataset.item_texts, strict=True)) == TEXTS


def test_reviews_alone_are_interactions(tmp_path):
    folder = write_raw(tmp_path / "raw", **{"reviews.json": reviews()})
    card = prepare("auto", [folder], tmp_path / "out", ALL)
    assert (card.source, card.interactions, card.notes) == ("goodreads", 2, NOTES)


def test_a_rating_of_0_is_none(tmp_path):
    folder = write_raw(tmp_path / "raw", **{"interactions.json": interactions()})
    prepare("goodreads", [folder], tmp_path / "out", Filters(user_core=1, item_core=1, min_rating=1.0))
    assert sequences(load_dataset(tmp_path / "out")) == {ANN: ["53", "6066819"], BEA: ["53"]}


def test_numbered_interactions_by_the_map_of_books(tmp_path):
    folder = write_raw(tmp_path / "raw", **{"goodreads_interactions.csv": NUMBERED, "book_id_map.csv": MAP})
    card = prepare("auto", [folder], tmp_path / "out", ALL)
    assert (card.source, card.tied_interactions, card.notes) == ("goodreads", None, NOTES)
    assert [file["name"] for file in card.files] == [
        "goodreads_interactions.csv",
        "book_id_map.csv",
        "goodreads_books.json",
    ]
    dataset = load_dataset(tmp_path / "out")
    assert sequences(dataset) == {"0": ["6066819", "0024"], "948": ["53"]}
    assert dict(zip(dataset.items, dataset.item_texts, strict=True)) == TEXTS


def test_numbered_interactions_without_the_map_have_no_texts(tmp_path):
    """A number of the CSV may be that of another book in the file of books."""
    folder = write_raw(tmp_path / "raw", **{"goodreads_interactions.csv": NUMBERED.replace("948,1", "948,53")})
    card = prepare("auto", [folder], tmp_path / "out", ALL)
    note = (
        "book_id_map.csv is not there: books are called by the numbers of goodreads_interactions.csv, and have no texts"
    )
    assert (card.notes, card.items_without_text) == ([*NOTES, note], 3)
    assert (tmp_path / "out" / "user_sequence.txt").read_text() == "0 2 0\n948 53\n"
    assert (tmp_path / "out" / "items.jsonl").read_text() == '{"id": "0"}\n{"id": "2"}\n{"id": "53"}\n'


def test_a_number_that_the_map_lacks_is_named(tmp_path):
    contents = {"all.csv": NUMBERED + "948,3,1,4,1\n", "book_id_map.csv": MAP}
    folder = write_raw(tmp_path / "raw", **contents)
    with pytest.raises(InputError) as caught:
        prepare("auto", [folder], tmp_path / "out", ALL)
    expected = f"{folder / 'all.csv'}:5: book_id is '3', which {folder / 'book_id_map.csv'} does not have; mend or"
    assert str(caught.value).startswith(expected)


def test_a_faulty_date_names_its_line(tmp_path):
    text = interactions([*SHELVED, (BEA, "0024", 1, True, "2006-12-31")])
    folder = write_raw(tmp_path / "raw", **{"interactions.json": text})
    with pytest.raises(InputError) as caught:
        prepare("auto", [folder], tmp_path / "out", ALL)
    assert str(caught.value).startswith(
        f"{folder / 'interactions.json'}:5: date_added is '2006-12-31', expected a date"
    )
