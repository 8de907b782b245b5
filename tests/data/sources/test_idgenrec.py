"""Sequences as IDGenRec, OpenP5 and S3-Rec have them, on tiny raw files."""

import pytest

from idgenrec_jax.errors import InputError

SEQUENCES = "A1 0012 B7 B3\nB2 B3\nC3 X1 B7\n"
TEXTS = (
    "0012 title: Ball; size 3; 2 pieces; brand: Unknown; category: Sports, Balls\n"
    "B3 title: Net &amp; pole; brand: Bolt; category: Sports\n"
    "B7 title: note: red; brand: Bolt; category: Toys\n"
    "X1 a line without fields\n"
)


def test_the_authors_folder(tmp_path, prepared):
    (tmp_path / "user_sequence.txt").write_text(SEQUENCES)
    (tmp_path / "item_plain_text.txt").write_text(TEXTS)
    (tmp_path / "item_generative_indexing_phase_0.txt").write_text("0012 ball size\nB3 net pole\n")
    card, sequences, texts = prepared(tmp_path)
    assert card.source == "idgenrec" and card.text_fields == ["title", "brand", "categories", "text"]
    assert "taken as given" in card.notes[0]
    assert f"--config.ids.table={tmp_path / 'item_generative_indexing_phase_0.txt'}" in card.notes[1]
    assert sequences == {"A1": ["0012", "B7", "B3"], "B2": ["B3"], "C3": ["X1", "B7"]}
    assert texts == {
        "0012": {"title": "Ball; size 3; 2 pieces", "categories": "Sports, Balls"},
        "B3": {"title": "Net & pole", "brand": "Bolt", "categories": "Sports"},
        "B7": {"title": "note: red", "brand": "Bolt", "categories": "Toys"},
        "X1": {"text": "a line without fields"},
    }


def test_texts_without_fields(tmp_path, prepared):
    (tmp_path / "user_sequence.txt").write_text(SEQUENCES)
    (tmp_path / "item_plain_text.txt").write_text("0012 a ball; red: always\nB3 a net\nB7\n")
    card, _, texts = prepared(tmp_path)
    assert card.text_fields == ["text"]
    assert texts == {"0012": {"text": "a ball; red: always"}, "B3": {"text": "a net"}, "B7": {}, "X1": {}}


def test_records_of_items_beside_sequences(tmp_path, prepared):
    (tmp_path / "user_sequence.txt").write_text(SEQUENCES)
    (tmp_path / "items.jsonl").write_text('{"id": "0012", "title": "Ball"}\n{"id": "B3", "title": "Net"}\n')
    assert prepared(tmp_path)[2] == {"0012": {"title": "Ball"}, "B3": {"title": "Net"}, "B7": {}, "X1": {}}


def test_s3_rec(tmp_path, prepared):
    (tmp_path / "Beauty.txt").write_text("1 1 2 3\n2 4 2\n3 5 2 4 1\n")
    (tmp_path / "Beauty_sample.txt").write_text("1 7 8\n2 9 7 8\n")
    (tmp_path / "Beauty_item2attributes.json").write_text('{"1": [1, 2], "2": [3]}')
    card, sequences, texts = prepared(tmp_path)
    assert card.source == "idgenrec"
    assert sequences == {"1": ["1", "2", "3"], "2": ["4", "2"], "3": ["5", "2", "4", "1"]}
    assert texts == {key: {} for key in "12345"}


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("D4\n", ":4: user D4 has no items, expected at least one; mend"),
        ("A1 B3\n", ":4: user A1 has a sequence above, expected one; mend"),
        ("D4 B\x073\n", ":4: an item of user D4 is 'B\\x073', expected a key without control characters"),
    ],
)
def test_faults_are_named(tmp_path, prepared, line, found):
    path = tmp_path / "user_sequence.txt"
    path.write_text(SEQUENCES + line)
    with pytest.raises(InputError) as caught:
        prepared(path)
    assert str(caught.value).startswith(f"{path}{found}")


def test_a_table_with_blanks_is_not_taken_for_sequences(tmp_path, prepared):
    (tmp_path / "ratings.txt").write_text("1 10 5 100\n2 11 4 101\n3 12 4 102\n")
    with pytest.raises(InputError, match=r"--source=auto: does not know ratings.txt \(text: 1, 10, 5, 100\)"):
        prepared(tmp_path)
