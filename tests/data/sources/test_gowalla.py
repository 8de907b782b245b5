"""The Gowalla format on tiny raw files."""

import gzip

import pytest

from idgenrec_jax.data.sources.preparation import Filters, prepare
from idgenrec_jax.errors import InputError

ALL = Filters(user_core=1, item_core=1)

CHECK_INS = (
    "0\t2010-10-19T23:55:27Z\t30.2359\t-97.7951\t22847\n"
    "0\t2010-10-18T22:17:43Z\t30.2691\t-97.7493\t420315\n"
    "0\t2010-10-17T23:42:03Z\t-30.2557\t97\t316637\n"
    "7\t2009-02-28T00:00:01Z\t0\t0\t22847\n"
)


def write_raw(folder, check_ins=CHECK_INS):
    folder.mkdir()
    (folder / "loc-gowalla_totalCheckins.txt.gz").write_bytes(gzip.compress(check_ins.encode()))
    (folder / "loc-gowalla_edges.txt").write_text("0\t7\n7\t0\n")
    return folder


def test_check_ins(tmp_path):
    card = prepare("auto", [write_raw(tmp_path / "raw")], tmp_path / "out", ALL)
    assert (card.source, card.interactions, card.items_without_text) == ("gowalla", 4, 3)
    assert card.reason == (
        "loc-gowalla_totalCheckins.txt.gz has user, time, latitude, longitude and place with tabs between"
    )
    assert card.notes == ["places have no texts, and textual IDs are made from text"]
    assert (tmp_path / "out" / "user_sequence.txt").read_text() == "0 316637 420315 22847\n7 22847\n"
    items = '{"id": "22847"}\n{"id": "316637"}\n{"id": "420315"}\n'
    assert (tmp_path / "out" / "items.jsonl").read_text() == items


def test_a_faulty_time_names_its_line(tmp_path):
    folder = write_raw(tmp_path / "raw", CHECK_INS + "7\t2009-02-29T00:00:01Z\t0\t0\t22847\n")
    with pytest.raises(InputError) as caught:
        prepare("auto", [folder], tmp_path / "out", ALL)
    assert str(caught.value).startswith(
        f"{folder / 'loc-gowalla_totalCheckins.txt.gz'}:5: time is '2009-02-29T00:00:01Z', expected a date such as"
    )
