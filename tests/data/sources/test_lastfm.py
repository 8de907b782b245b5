"""The Last.fm format of HetRec on tiny raw files."""

import pytest

from idgenrec_jax.data.dataset import load_dataset
from idgenrec_jax.data.sources.preparation import Filters, prepare
from idgenrec_jax.errors import InputError

ALL = Filters(user_core=1, item_core=1)

HEARD = "userID\tartistID\tweight\r\n2\t52\t11690\r\n2\t51\t13883\r\n3\t7\t1\r\n"
TAGGED = (
    "userID\tartistID\ttagID\ttimestamp\r\n"
    "2\t52\t13\t1238536800000\r\n2\t52\t15\t1238536800000\r\n2\t51\t13\t1238450400000\r\n3\t7\t13\t1241128800000\r\n"
)
ARTISTS = (
    "id\tname\turl\tpictureURL\n"
    "7\tSigur R\u00f3s\thttp://www.last.fm/music/S\t\n"
    '51\t"Weird Al" Yankovic\thttp://www.last.fm/music/W\thttp://x/1.jpg\n'
    '52\t"Half\thttp://www.last.fm/music/H\thttp://x/2.jpg\n'
)


def write_raw(folder, **others):
    folder.mkdir()
    contents = {"user_artists": HEARD, "artists": ARTISTS, "user_friends": "userID\tfriendID\r\n2\t3\r\n", **others}
    for name, text in contents.items():
        (folder / f"{name}.dat").write_text(text, encoding="utf-8", newline="")
    (folder / "tags.dat").write_bytes("tagID\ttagValue\r\n13\tchill\u2019out\r\n".encode("cp1252"))
    return folder


TEXTS = ("title: Sigur R\u00f3s", 'title: "Weird Al" Yankovic', 'title: "Half')


def test_tags_with_times_are_preferred(tmp_path):
    folder = write_raw(tmp_path / "raw", **{"user_taggedartists-timestamps": TAGGED})
    card = prepare("auto", [folder], tmp_path / "out", Filters(user_core=1, item_core=1, since="2009-03-30"))
    assert (card.source, card.order, card.exact_repeats, card.interactions) == ("lastfm", "time", 1, 3)
    assert card.reason == "user_taggedartists-timestamps.dat has userID, artistID, timestamp"
    assert card.notes == [
        "an interaction is a tag that a user gave an artist, at the time when it was given",
        "user_artists.dat is not read: it has no times",
    ]
    dataset = load_dataset(tmp_path / "out")
    assert dataset.users == ("2", "3")
    order = {item: text for item, text in zip(dataset.items, dataset.item_texts, strict=True)}
    assert order == dict(zip(("7", "51", "52"), TEXTS, strict=True))
    assert [[dataset.items[item] for item in sequence] for sequence in dataset.sequences] == [["51", "52"], ["7"]]


def test_without_times_the_order_is_that_of_the_file(tmp_path):
    card = prepare("auto", [write_raw(tmp_path / "raw")], tmp_path / "out", ALL)
    assert (card.source, card.tied_interactions, card.interactions) == ("lastfm", None, 3)
    assert card.notes == [
        "user_artists.dat has no times: a user's artists stand as in the file, which is no order of time"
    ]
    dataset = load_dataset(tmp_path / "out")
    assert [[dataset.items[item] for item in sequence] for sequence in dataset.sequences] == [["52", "51"], ["7"]]


def test_a_faulty_time_names_its_line(tmp_path):
    folder = write_raw(tmp_path / "raw", **{"user_taggedartists-timestamps": TAGGED + "3\t7\t1\tMay\r\n"})
    with pytest.raises(InputError) as caught:
        prepare("lastfm", [folder], tmp_path / "out", ALL)
    expected = f"{folder / 'user_taggedartists-timestamps.dat'}:6: timestamp is 'May', expected a number; mend"
    assert str(caught.value).startswith(expected)
