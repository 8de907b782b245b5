"""MIND on tiny raw files."""

import pytest

from idgenrec_jax.errors import InputError

BEHAVIORS = (
    "1\tU1\t11/14/2019 7:01:48 PM\tN5 N9 N2\tN3-1 N7-0\n"
    "2\tU1\t11/11/2019 9:05:58 AM\tN5 N9\tN2-1 N1-0\n"
    "3\tU2\t11/12/2019 6:11:30 PM\t\tN5-0 N2-1\n"
    "4\tU3\t11/12/2019 6:11:30 AM\tN9\tN5-0\n"
)
NEWS = (
    'N2\tnews\tworld\t"No partner\tWhat it says.\thttp://a/2\t[]\t[]\n'
    "N3\tsports\tgolf\tThree &amp; four\t\thttp://a/3\t[]\t[]\n"
    "N5\tnews\tnews\tFive\t\thttp://a/5\t[]\t[]\n"
)


def write(folder, behaviors=BEHAVIORS, news=NEWS):
    folder.mkdir()
    (folder / "behaviors.tsv").write_text(behaviors)
    (folder / "news.tsv").write_text(news)
    (folder / "entity_embedding.vec").write_text("Q1\t0.1\t0.2\n")
    return folder


def test_clicks_follow_the_history_of_the_first_impression(tmp_path, prepared):
    card, sequences, texts = prepared(write(tmp_path / "raw"))
    assert card.source == "mind" and "have no times" in card.notes[0]
    assert sequences == {"U1": ["N5", "N9", "N2", "N3"], "U2": ["N2"], "U3": ["N9"]}
    assert texts == {
        "N2": {"title": '"No partner', "categories": "news, world", "description": "What it says."},
        "N3": {"title": "Three & four", "categories": "sports, golf"},
        "N5": {"title": "Five", "categories": "news"},
        "N9": {},
    }


def test_a_second_folder_continues_the_first(tmp_path, prepared):
    train = write(tmp_path / "train")
    later = "1\tU2\t11/15/2019 12:00:00 AM\tN2 N9\tN4-1\n2\tU4\t11/15/2019 8:00:00 AM\tN8\tN2-1\n"
    dev = write(tmp_path / "dev", later, "N4\tnews\tworld\tFour\t\thttp://a/4\t[]\t[]\n")
    card, sequences, texts = prepared(train, dev)
    assert sequences["U2"] == ["N2", "N4"] and sequences["U4"] == ["N8", "N2"]
    assert texts["N4"]["title"] == "Four" and texts["N3"]["title"] == "Three & four"
    assert [file["name"] for file in card.files] == ["behaviors.tsv", "behaviors.tsv", "news.tsv", "news.tsv"]


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("5\tU1\t2019-11-14\tN5\tN3-1\n", "time is '2019-11-14', expected a date as %m/%d/%Y %I:%M:%S %p; mend"),
        ("5\tU1\t11/14/2019 7:01:48 AM\tN5\tN3 N4\n", "impressions has 'N3', expected news such as N1-1 or N2-0; mend"),
        ("5\tU1\t11/14/2019 7:01:48 AM\tN5\n", "found '5\\tU1\\t11/14/2019 7:01:48 AM\\tN5', expected 5 columns"),
    ],
)
def test_faults_are_named(tmp_path, prepared, line, found):
    folder = write(tmp_path / "raw", BEHAVIORS + line)
    with pytest.raises(InputError) as caught:
        prepared(folder)
    assert str(caught.value).startswith(f"{folder / 'behaviors.tsv'}:5: {found}")


def test_there_are_no_ratings(tmp_path, prepared):
    with pytest.raises(InputError, match=r"behaviors.tsv:1: has no rating, and --min_rating needs one"):
        prepared(write(tmp_path / "raw"), min_rating=1.0)
