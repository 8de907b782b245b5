"""The JSON documents of LETTER and LC-Rec and the tables of MiniOneRec, on tiny raw files."""

import csv
import json

import pytest

from idgenrec_jax.errors import InputError

SEQUENCES = {"10": [3, 1, 2, 1], "u 2": ["B", 1], "7": [2]}
TEXTS = {
    "1": {"title": "Red &amp; blue", "description": "['Soft.', 'Warm.']", "brand": "N", "categories": "Toys,Dolls"},
    "2": {"title": "Two", "description": ""},
    "9": {"title": "Never bought"},
}
COLUMNS = ["user_id", "history_item_title", "item_title", "history_item_id", "item_id", "history_item_sid", "item_sid"]
CODES = {"1": ["<a_1>", "<b_2>"], "2": ["<a_1>", "<b_3>"]}


@pytest.mark.parametrize("indent", [None, 2])
def test_documents(tmp_path, prepared, indent):
    (tmp_path / "X.inter.json").write_text(json.dumps(SEQUENCES, indent=indent))
    (tmp_path / "X.item.json").write_text(json.dumps(TEXTS, indent=indent))
    (tmp_path / "X.index.json").write_text(json.dumps(CODES, indent=indent))
    card, sequences, texts = prepared(tmp_path, duplicates="keep")
    assert (card.source, card.split.name, card.order[:22]) == ("letter", "leave_one_out", "the order of the files")
    assert sequences == {"10": ["3", "1", "2", "1"], "u 2": ["B", "1"], "7": ["2"]}
    described = {"title": "Red & blue", "brand": "N", "categories": "Toys, Dolls", "description": "Soft. Warm."}
    assert texts == {"1": described, "2": {"title": "Two"}, "3": {}, "B": {}}


@pytest.mark.parametrize(
    ("document", "found"),
    [
        ('{"1": [1], "2": []}', ":'2': user 2 has no items, expected at least one; mend"),
        ('{"1": [1], "2": 5, "3": [1]}', ":'2': has 5, expected a list of items; mend"),
        ('{"1": [1], "2": [[3]]}', ":'2': an item of user 2 is [3], expected a key: a text or a whole number; mend"),
        ('{"1": [1], "1": [2]}', ": cannot be read as one JSON document (the key '1' stands twice in an object); "),
        ('{"1": [1],\n"2": [2', ": cannot be read as one JSON document (Expecting ',' delimiter: line 2 column 8"),
        ('{"1": [1], "2": ' + "[" * 100_000, ": cannot be read as one JSON document (nested too deeply); "),
    ],
)
def test_faults_of_a_document_name_file_and_user(tmp_path, prepared, document, found):
    path = tmp_path / "X.inter.json"
    path.write_text(document)
    with pytest.raises(InputError) as caught:
        prepared(path)
    assert str(caught.value).startswith(f"{path}{found}")


def test_a_text_that_is_no_object(tmp_path, prepared):
    (tmp_path / "X.inter.json").write_text('{"1": [1, 2]}')
    (tmp_path / "X.item.json").write_text('{"1": {"title": "One"}, "2": "Two", "3": {}}')
    with pytest.raises(InputError, match=r"X.item.json:'2': is 'Two', expected an object with fields; mend"):
        prepared(tmp_path)
    card, _, texts = prepared(tmp_path, bad_lines="skip")
    assert card.bad_lines == 1 and texts == {"1": {"title": "One"}, "2": {}}


def test_lists_of_numbers_alone_are_not_taken_for_sequences(tmp_path, prepared):
    (tmp_path / "item2attributes.json").write_text('{"1": [1, 2], "2": [3]}')
    with pytest.raises(InputError, match=r"--source=auto: does not know item2attributes.json \(one JSON document\)"):
        prepared(tmp_path)


def write_table(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(COLUMNS)
        for user, history, item in rows:
            titles = str([f'Item "{key}", large' for key in history])
            table.writerow([user, titles, f'Item "{item}", large', str(history), item, str(["<a_1>"]), "<a_1>"])


def test_one_table(tmp_path, prepared):
    write_table(tmp_path / "Office.csv", [("A", [5, 0], 7), ("B", ["x"], 5), ("A", [5, 0, 7], 9)])
    card, sequences, texts = prepared(tmp_path)
    assert card.source == "letter" and card.split.name == "leave_one_out"
    assert sequences == {"A": ["5", "0", "7", "9"], "B": ["x", "5"]}
    assert texts == {key: {"title": f'Item "{key}", large'} for key in "0579x"}


def test_tables_in_three_folders_with_texts_beside_them(tmp_path, prepared):
    write_table(tmp_path / "train" / "Office.csv", [("A", [5, 0], 7), ("A", [5, 0, 7], 9)])
    write_table(tmp_path / "valid" / "Office.csv", [("A", [0, 7, 9], 3), ("B", [5], 3)])
    write_table(tmp_path / "test" / "Office.csv", [("B", [5, 3], 7)])
    (tmp_path / "info").mkdir()
    (tmp_path / "info" / "Office.txt").write_text('<a_1><b_2>\tFive "inch\t5\n<a_1><b_3>\tSeven\t7\n')
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "Office.item.json").write_text('{"0": {"title": "Zero", "description": "[\\"Round.\\"]"}}')
    card, sequences, texts = prepared(tmp_path)
    assert card.split.name == "given"
    assert sequences == {"A": (["5", "0", "7", "9", "3"], 4, 1), "B": (["5", "3", "7"], 1, 1)}
    assert texts["0"] == {"title": "Zero", "description": "Round."}
    assert [texts[key]["title"] for key in "579"] == ['Five "inch', "Seven", 'Item "9", large']


def test_a_history_that_is_no_list(tmp_path, prepared):
    path = tmp_path / "Office.csv"
    path.write_text(",".join(COLUMNS) + "\nA,[],x,[1],2,[],s\nA,[],x,open(),2,[],s\n")
    with pytest.raises(InputError) as caught:
        prepared(path)
    assert str(caught.value).startswith(f"{path}:3: not JSON nor a Python literal: 'open()'; mend")
