"""The Google Local format on tiny raw files."""

import json

import pytest

from idgenrec_jax.data.dataset import load_dataset
from idgenrec_jax.data.sources.preparation import Filters, prepare
from idgenrec_jax.errors import InputError

ALL = Filters(user_core=1, item_core=1)

# (user, place, milliseconds, rating, text)
REVIEWS = [
    ("101463350189962023774", "0x7c00456eecad3111:0x8217f9600c51f33", 1463350189962, 5, None),
    ("101463350189962023774", "0x80c2c778e3b73d33:0xbdc58662a4a97d49", 1463350189961, 4, "Good."),
    ("117065749986299237881", "0x7c00456eecad3111:0x8217f9600c51f33", 1563350189962, 1, "No."),
]
PLACES = [
    {
        "name": "San Soo Dang",
        "address": "San Soo Dang, 761 S Vermont Ave",
        "gmap_id": "0x80c2c778e3b73d33:0xbdc58662a4a97d49",
        "description": "Korean & more",
        "category": ["Korean restaurant", "Restaurant"],
    },
    {
        "name": "Nobel Textile",
        "address": "Nobel Textile, 719 E 9th St",
        "gmap_id": "0x7c00456eecad3111:0x8217f9600c51f33",
        "description": None,
        "category": None,
    },
]


def write_raw(folder, reviews=REVIEWS):
    folder.mkdir()
    names = ("user_id", "gmap_id", "time", "rating", "text")
    records = [{"name": "A Person", **dict(zip(names, row, strict=True)), "pics": None} for row in reviews]
    for name, lines in (("review-Here_10.json", records), ("meta-Here.json", PLACES)):
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_reviews_and_places(tmp_path):
    card = prepare("auto", [write_raw(tmp_path / "raw")], tmp_path / "out", ALL)
    assert (card.source, card.interactions, card.order) == ("google_local", 3, "time")
    assert card.reason == "review-Here_10.json has user_id, gmap_id, time, rating"
    dataset = load_dataset(tmp_path / "out")
    assert dataset.users == ("101463350189962023774", "117065749986299237881")
    assert dataset.items == ("0x7c00456eecad3111:0x8217f9600c51f33", "0x80c2c778e3b73d33:0xbdc58662a4a97d49")
    assert [sequence.tolist() for sequence in dataset.sequences] == [[1, 0], [0]]
    assert dataset.item_texts == (
        "title: Nobel Textile",
        "title: San Soo Dang; categories: Korean restaurant, Restaurant; description: Korean & more",
    )


def test_times_are_milliseconds_and_an_address_is_written_where_it_is_asked_for(tmp_path):
    filters = Filters(user_core=1, item_core=1, until="2016-05-16", text_columns=("address",))
    prepare("google_local", [write_raw(tmp_path / "raw")], tmp_path / "out", filters)
    assert load_dataset(tmp_path / "out").item_texts[0] == "address: Nobel Textile, 719 E 9th St"
    assert load_dataset(tmp_path / "out").num_interactions == 2


def test_a_faulty_time_names_its_line(tmp_path):
    folder = write_raw(tmp_path / "raw", [*REVIEWS, ("1", "0x1:0x2", "soon", 1, None)])
    with pytest.raises(InputError) as caught:
        prepare("auto", [folder], tmp_path / "out", ALL)
    assert str(caught.value).startswith(f"{folder / 'review-Here_10.json'}:4: time is 'soon', expected a number; ")
