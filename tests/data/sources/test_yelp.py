"""The Yelp format on tiny raw files."""

import json

import pytest

from idgenrec_jax.data.dataset import load_dataset
from idgenrec_jax.data.sources.preparation import Filters, prepare
from idgenrec_jax.errors import InputError

ALL = Filters(user_core=1, item_core=1)

REVIEWS = [
    ("-u", "b_2", 4.0, "2016-07-03 21:20:01"),
    ("-u", "b-1", 1.0, "2016-07-03 21:20:00"),
    ("v", "b_2", 5.0, "2009-05-03"),
]
BUSINESSES = [
    {"business_id": "b-1", "name": "Joe's", "city": "Reno", "state": "NV", "categories": None, "attributes": None},
    {
        "business_id": "b_2",
        "name": "Caf\u00e9 Zo\u00eb",
        "address": "1 Main St",
        "city": "Qu\u00e9bec",
        "state": "QC",
        "categories": "Coffee & Tea, Food",
        "attributes": {"WiFi": "u'free'"},
    },
]


def review(user, business, stars, date):
    record = {"review_id": f"r{user}{business}", "user_id": user, "business_id": business, "stars": stars}
    return json.dumps({**record, "useful": 0, "text": "Good.", "date": date})


def write_raw(folder, reviews=REVIEWS):
    folder.mkdir()
    (folder / "review.json").write_text("".join(review(*row) + "\n" for row in reviews))
    (folder / "business.json").write_text(
        "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in BUSINESSES), encoding="utf-8"
    )
    tip = {"user_id": "w", "business_id": "b-1", "text": "Go.", "date": "2012-01-01 00:00:00", "compliment_count": 0}
    (folder / "tip.json").write_text(json.dumps(tip) + "\n")
    (folder / "user.json").write_text(json.dumps({"user_id": "v", "name": "Vi", "review_count": 1}) + "\n")
    (folder / "photos.json").write_text(json.dumps({"photo_id": "p", "business_id": "b-1", "caption": ""}) + "\n")
    return folder


def test_reviews_and_businesses(tmp_path):
    folder = write_raw(tmp_path / "raw")
    card = prepare("auto", [folder], tmp_path / "out", ALL)
    assert (card.source, card.interactions, card.order) == ("yelp", 3, "time")
    assert card.reason == "review.json has user_id, business_id, date, stars"
    assert [file["name"] for file in card.files] == ["review.json", "business.json"]
    dataset = load_dataset(tmp_path / "out")
    assert (dataset.users, dataset.items) == (("-u", "v"), ("b-1", "b_2"))
    assert [sequence.tolist() for sequence in dataset.sequences] == [[0, 1], [1]]
    assert dataset.item_texts == (
        "title: Joe's; city: Reno; state: NV",
        "title: Caf\u00e9 Zo\u00eb; categories: Coffee & Tea, Food; city: Qu\u00e9bec; state: QC",
    )


def test_an_address_is_written_where_it_is_asked_for_and_stars_are_ratings(tmp_path):
    filters = Filters(user_core=1, item_core=1, min_rating=4.0, text_columns=("title", "address"))
    prepare("yelp", [write_raw(tmp_path / "raw")], tmp_path / "out", filters)
    dataset = load_dataset(tmp_path / "out")
    assert dataset.item_texts == ("title: Caf\u00e9 Zo\u00eb; address: 1 Main St",)


def test_a_faulty_date_names_its_line(tmp_path):
    folder = write_raw(tmp_path / "raw", [*REVIEWS, ("v", "b-1", 3.0, "2009-13-03")])
    with pytest.raises(InputError) as caught:
        prepare("auto", [folder], tmp_path / "out", ALL)
    assert str(caught.value).startswith(f"{folder / 'review.json'}:4: date is '2009-13-03', expected a date such as")
    assert not (tmp_path / "out").exists()


def test_of_two_files_of_reviews_one_has_to_be_named(tmp_path):
    folder = write_raw(tmp_path / "raw")
    (folder / "more.json").write_text(review(*REVIEWS[0]) + "\n")
    with pytest.raises(InputError) as caught:
        prepare("auto", [folder], tmp_path / "out", ALL)
    assert str(caught.value) == (
        f"--input: {folder / 'more.json'} and {folder / 'review.json'} hold interactions; "
        "name the files to read, with commas between"
    )
    made = prepare("auto", [folder / "more.json", folder / "business.json"], tmp_path / "out", ALL)
    assert (made.source, made.interactions, made.items_without_text) == ("yelp", 1, 0)
