"""The Steam formats on tiny raw files."""

import json

import pytest

from idgenrec_jax.data.dataset import load_dataset
from idgenrec_jax.data.sources.preparation import Filters, prepare
from idgenrec_jax.errors import InputError

ALL = Filters(user_core=1, item_core=1)

REVIEWS = """\
{u'username': u'Ann O\\u2019Neil', u'hours': 0.1, u'product_id': u'20', u'date': u'2018-01-04', u'text': u'Don\\'t'}
{u'username': u'Ann O\\u2019Neil', u'hours': 5, u'product_id': u'010', u'date': u'2017-12-27', u'text': u'"Fun"'}
{u'username': u'bo', u'user_id': u'76561190000000002', u'product_id': u'20', u'date': u'2017-12-27', u'text': u''}
"""
GAMES = """\
{u'publisher': u'Making Fun, Inc.', u'genres': [u'Free to Play', u'Indie'], u'app_name': u'Iron', \
u'title': u'Iron\\xe9', u'tags': [u'Card Game'], \
u'specs': [u'Single-player', u'Multi-player'], u'price': u'Free To Play', u'id': u'20'}
{u'app_name': u'Plain', u'release_date': u'2018-01-04', u'price': 4.99, u'developer': u'Koto', u'id': u'010'}
"""
NESTED = """\
{'user_id': '76561190000000001', 'reviews': [\
{'posted': 'Posted July 15.', 'item_id': '20', 'recommend': True, 'review': "It's"}, \
{'posted': 'Posted December 31, 2011.', 'item_id': '30', 'recommend': False, 'review': ''}, \
{'posted': 'Posted November 5, 2011.', 'item_id': '010', 'recommend': True, 'review': ''}]}
{'user_id': 'js41637', 'reviews': []}
{'user_id': 'evcentric', 'reviews': [\
{'posted': 'Posted February 29.', 'item_id': '20', 'recommend': True, 'review': ''}, \
{'posted': 'Posted June 1, 2015.', 'item_id': '010', 'recommend': True, 'review': ''}]}
"""
OWNED = "{'user_id': 'js41637', 'items_count': 1, 'steam_id': '1', 'items': [{'item_id': '20', 'item_name': 'Iron'}]}\n"

YEARLESS = "dates without a year are those of the crawl: they count as the year after the latest that the file names"
RECOMMENDED = "a game that is recommended has a rating of 1, another one of 0"
NO_TIMES = "australian_users_items.json is not read: it says which games a user has, not since when"


def write_raw(folder, **contents):
    folder.mkdir()
    for name, text in {"steam_games": GAMES, **contents}.items():
        (folder / f"{name}.json").write_text(text, encoding="utf-8")
    return folder


def sequences(folder):
    return [json.loads(line) for line in (folder / "user_sequence.jsonl").read_text(encoding="utf-8").splitlines()]


def written_items(folder):
    """The records of items, without blank fields."""
    lines = (folder / "items.jsonl").read_text(encoding="utf-8").splitlines()
    return [{name: text for name, text in json.loads(line).items() if text} for line in lines]


def test_reviews_and_games(tmp_path):
    folder = write_raw(tmp_path / "raw", steam_reviews=REVIEWS)
    card = prepare("auto", [folder], tmp_path / "out", ALL)
    assert (card.source, card.interactions, card.notes) == ("steam", 3, [])
    assert card.reason == "steam_reviews.json has username, product_id, date"
    assert sequences(tmp_path / "out") == [
        {"user": "Ann O\u2019Neil", "items": ["010", "20"]},
        {"user": "bo", "items": ["20"]},
    ]
    items = written_items(tmp_path / "out")
    assert items == [
        {"id": "010", "title": "Plain", "developer": "Koto"},
        {
            "id": "20",
            "title": "Iron\u00e9",
            "categories": "Free to Play, Indie",
            "tags": "Card Game",
            "specs": "Single-player, Multi-player",
            "publisher": "Making Fun, Inc.",
        },
    ]


def test_prices_and_dates_are_written_where_they_are_asked_for(tmp_path):
    filters = Filters(user_core=1, item_core=1, text_columns=("price", "date"))
    prepare("steam", [write_raw(tmp_path / "raw", steam_reviews=REVIEWS)], tmp_path / "out", filters)
    items = written_items(tmp_path / "out")
    assert items == [{"id": "010", "price": "4.99", "date": "2018-01-04"}, {"id": "20", "price": "Free To Play"}]


def test_of_both_files_of_reviews_a_note_names_the_one_that_is_not_read(tmp_path):
    contents = {"steam_reviews": REVIEWS, "australian_user_reviews": NESTED, "australian_users_items": OWNED}
    card = prepare("auto", [write_raw(tmp_path / "raw", **contents)], tmp_path / "out", ALL)
    assert card.users == 2
    assert card.notes == [
        NO_TIMES,
        "australian_user_reviews.json is not read: give it without steam_reviews.json to read it instead",
    ]


def test_reviews_of_australian_users_and_dates_without_a_year(tmp_path):
    """Without a year is 2016, the year after 2015; it had a 29 February."""
    folder = write_raw(tmp_path / "raw", australian_user_reviews=NESTED, australian_users_items=OWNED)
    card = prepare("auto", [folder], tmp_path / "out", ALL)
    assert (card.source, card.interactions, card.bad_lines) == ("steam", 5, 0)
    assert card.notes == [YEARLESS, RECOMMENDED, NO_TIMES]
    dataset = load_dataset(tmp_path / "out")
    assert (dataset.users, dataset.items) == (("76561190000000001", "evcentric"), ("010", "20", "30"))
    assert [sequence.tolist() for sequence in dataset.sequences] == [[0, 2, 1], [0, 1]]
    filters = Filters(user_core=1, item_core=1, min_rating=1.0, since="2015-12-31", until="2016-03-01")
    made = prepare("auto", [folder], tmp_path / "recommended", filters)
    assert made.interactions_by_filter["rated"] == 4 and made.interactions == 1


@pytest.mark.parametrize(
    ("posted", "fault"),
    [
        ("Posted soon.", "posted is 'Posted soon.', expected such as 'Posted November 5, 2011.'"),
        ("Posted Julember 5, 2011.", "posted is 'Julember 5 2011', expected a date as %B %d %Y"),
        (None, "posted is None, expected such as 'Posted November 5, 2011.'"),
    ],
)
def test_a_faulty_review_names_its_line_and_the_others_of_its_user_count(tmp_path, posted, fault):
    reviews = [{"posted": posted, "item_id": "1"}, {"posted": "Posted May 2.", "item_id": "2"}]
    text = f"{NESTED}{ {'user_id': 'v', 'reviews': reviews}!r}\n"
    folder = write_raw(tmp_path / "raw", australian_user_reviews=text)
    place = f"{folder / 'australian_user_reviews.json'}:4: {fault}"
    with pytest.raises(InputError) as caught:
        prepare("auto", [folder], tmp_path / "out", ALL)
    assert str(caught.value).startswith(place)
    card = prepare("auto", [folder], tmp_path / "out", Filters(user_core=1, item_core=1, bad_lines="skip"))
    assert (card.interactions, card.first_bad_lines) == (6, [place])


def test_dates_of_which_none_has_a_year_cannot_be_placed(tmp_path):
    text = "{'user_id': 'v', 'reviews': [{'posted': 'Posted May 2.', 'item_id': '2', 'recommend': True}]}\n"
    folder = write_raw(tmp_path / "raw", australian_user_reviews=text)
    with pytest.raises(InputError, match=":1: posted is 'Posted May 2.', and no date of the file has a year; "):
        prepare("steam", [folder], tmp_path / "out", ALL)


def test_a_faulty_line_of_reviews_is_named(tmp_path):
    folder = write_raw(tmp_path / "raw", steam_reviews=REVIEWS + "{u'username': u'x'\n")
    with pytest.raises(InputError) as caught:
        prepare("auto", [folder], tmp_path / "out", ALL)
    place = f"{folder / 'steam_reviews.json'}:4: not JSON nor a Python literal: "
    assert str(caught.value).startswith(place)
