"""Data folders: what is read, what is refused and how the message reads, and the leave-one-out splits."""

import json
import re

import numpy as np
import pytest

from idgenrec_jax.data.dataset import Dataset, clean_text, item_text, load_dataset
from idgenrec_jax.data.examples import training_positions
from idgenrec_jax.errors import InputError

ITEMS = [{"id": item, "title": f"Title of {item}"} for item in "abcde"]


def write_folder(folder, sequences="u a b c d\nv b c a\n", items=ITEMS, plain=None):
    folder.mkdir(exist_ok=True)
    if sequences is not None:
        (folder / "user_sequence.txt").write_text(sequences, encoding="utf-8")
    if items is not None:
        text = items if isinstance(items, str) else "".join(json.dumps(item) + "\n" for item in items)
        (folder / "items.jsonl").write_text(text, encoding="utf-8")
    if plain is not None:
        (folder / "item_plain_text.txt").write_text(plain, encoding="utf-8")
    return folder


def training_examples(dataset):
    return list(zip(*training_positions(dataset), strict=True))


def message_of(folder):
    with pytest.raises(InputError) as caught:
        load_dataset(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_sequences_keep_order_and_repeated_items(tmp_path):
    dataset = load_dataset(write_folder(tmp_path / "shop", "u c a c c b\nv b c a\n"))
    assert dataset.name == "shop" and dataset.users == ("u", "v") and dataset.items == tuple("abcde")
    assert [sequence.tolist() for sequence in dataset.sequences] == [[2, 0, 2, 2, 1], [1, 2, 0]]
    assert dataset.num_interactions == 8


def test_leave_one_out(tmp_path):
    dataset = load_dataset(write_folder(tmp_path / "shop", "u a b c d e\nv b c\nw d e a\nx e\n"))
    assert [dataset.training_sequence(user).tolist() for user in range(4)] == [[0, 1, 2], [1, 2], [3], [4]]
    assert dataset.evaluation_users.tolist() == [0, 2]
    history, target = dataset.held_out(0, "validation")
    assert (history.tolist(), target) == ([0, 1, 2], 3)
    history, target = dataset.held_out(0, "test")
    assert (history.tolist(), target) == ([0, 1, 2, 3], 4)
    assert training_examples(dataset) == [(0, 1), (0, 2), (1, 1)]
    with pytest.raises(ValueError, match="training only"):
        dataset.held_out(1, "test")
    with pytest.raises(ValueError, match="not 'train'"):
        dataset.held_out(0, "train")


def test_held_out_items_change_nothing_before_them(tmp_path):
    first = load_dataset(write_folder(tmp_path / "first", "u a b c d e\nv b c a d\n"))
    other_test = load_dataset(write_folder(tmp_path / "second", "u a b c d a\nv b c a e\n"))
    other_both = load_dataset(write_folder(tmp_path / "third", "u a b c a a\nv b c e e\n"))
    for user in range(2):
        for changed in (other_test, other_both):
            assert np.array_equal(first.training_sequence(user), changed.training_sequence(user))
            assert np.array_equal(first.held_out(user, "validation")[0], changed.held_out(user, "validation")[0])
            assert first.held_out(user, "test")[1] != changed.held_out(user, "test")[1]
        history, target = first.held_out(user, "test")
        assert np.array_equal(history, other_test.held_out(user, "test")[0])
        assert first.held_out(user, "validation")[1] == other_test.held_out(user, "validation")[1]
    assert training_examples(first) == training_examples(other_test) == training_examples(other_both)


def test_short_sequences_are_counted_out_loud(tmp_path, caplog):
    load_dataset(write_folder(tmp_path / "shop", "u a b c\nv b c\nw d\n"))
    assert "2 of 3 users have fewer than 3 interactions and are used for training only" in caplog.text


def test_item_text_skips_blanks_and_unknown_brands_and_keeps_further_fields():
    fields = {"id": "x", "description": "Good\tfor\n  you", "title": "Pen &amp; Ink\x00"}
    fields |= {"brand": "Unknown", "color": "red"}
    assert item_text(fields) == "title: Pen & Ink; description: Good for you; color: red"
    assert item_text({"id": "x", "title": " ", "brand": "unknown", "categories": ""}) == ""


@pytest.mark.parametrize("word", ["nan", "NaN", "None", "null", "NULL", "N/A", "na", "#N/A", "<NA>", " n/a\t"])
def test_missing_values_spelt_as_text_are_blank(word):
    assert item_text({"title": "Pen", "brand": word, "color": "red"}) == "title: Pen; color: red"
    assert item_text({"title": f"{word.strip()} 5"}) == f"title: {word.strip()} 5", "only whole values count"


def test_a_value_cannot_be_taken_for_a_field():
    fields = {"title": "brand: X", "description": "Size: 12; colour: red; brand : Y;z: end; 9:30; no", "a:b; c": "d"}
    text = item_text(fields)
    assert text == "title: brand: X; description: Size: 12, colour: red, brand : Y,z: end; 9:30; no; a b c: d"
    marks = re.findall(r"(?:^|;\s*)([^:;]+):\s", text)
    assert marks == ["title", "description", "a b c"]
    assert item_text({"": "x", "\ud800\n": "y"}) == "text: x; ?: y"


def test_both_spellings_of_an_accent_give_one_text():
    assert clean_text("Cafe\u0301 &eacute; e&#769;") == clean_text("Caf\u00e9 \u00e9 \u00e9") == "Café é é"


def test_clean_text_leaves_one_line():
    assert clean_text("\u200b a\r\n\x07b\u2028c\u00a0 ") == "a b c"


def test_items_jsonl_takes_numbers_and_nested_lists_and_is_preferred(tmp_path):
    items = [{"id": 7, "title": "Seven", "categories": [["Office", "Pens"], ["Gifts"]], "year": 1999, "brand": None}]
    folder = write_folder(tmp_path / "shop", "u 7 7 7\n", items, plain="7 other text\n")
    assert load_dataset(folder).item_texts == ("title: Seven; categories: Office, Pens, Gifts; year: 1999",)


def test_blanks_around_an_id_are_none_of_it(tmp_path):
    items = [{"id": " a\t", "title": "A"}, {"id": "b", "title": "B"}]
    assert load_dataset(write_folder(tmp_path / "shop", "u a b a\n", items)).items == ("a", "b")
    twice = write_folder(tmp_path / "twice", "u a b a\n", [*items, {"id": "a"}])
    assert "item a was already described" in message_of(twice)


def test_missing_values_in_an_items_file_are_counted(tmp_path, caplog):
    caplog.set_level("INFO", "absl")
    lines = '{"id": "a", "title": "A", "brand": "N/A", "price": NaN, "size": [Infinity, 3, "null", null]}\n'
    folder = write_folder(tmp_path / "shop", "u a b a\n", items=lines + '{"id": "b", "title": "none"}\n')
    assert load_dataset(folder).item_texts == ("title: A; size: 3", "")
    assert "n/a, na, nan, nat, nil, none, null, undefined): 5, read as blank" in caplog.text


def test_a_missing_plain_text_is_blank_and_counted(tmp_path, caplog):
    caplog.set_level("INFO", "absl")
    folder = write_folder(tmp_path / "shop", "u a b a\n", items=None, plain="a pen\nb NULL\n")
    assert load_dataset(folder).item_texts == ("pen", "")
    assert "n/a, na, nan, nat, nil, none, null, undefined): 1, read as blank" in caplog.text


def test_sequences_in_the_order_of_keys_are_warned_of(tmp_path, caplog):
    load_dataset(write_folder(tmp_path / "shop", "u a b c d e\nv b c d d e\nw e d a b c\n"))
    assert f"{tmp_path / 'shop' / 'user_sequence.txt'}: NOT IN THE ORDER OF TIME" in caplog.text
    assert "of the 3 users with 5 items or more, 67% have all of them in the order of the item keys" in caplog.text


def test_keys_that_look_alike_are_warned_of(tmp_path, caplog):
    folder = write_folder(tmp_path / "shop", "caf\u00e9 a b c\ncafe\u0301 b c a\nnan c a b\n")
    assert load_dataset(folder).users == ("caf\u00e9", "cafe\u0301", "nan"), "keys stay as they are"
    assert r"the user keys 'caf\xe9' and 'cafe\u0301' differ only in how accents are written" in caplog.text
    assert "the user key 'nan' reads like a missing value" in caplog.text


def test_a_folder_name_that_no_file_system_takes(tmp_path):
    for name in ("x" * 300, "a\0b"):
        assert "no such folder" in message_of(tmp_path / name)


def test_plain_text(tmp_path):
    folder = write_folder(tmp_path / "shop", "u a b a\n", items=None, plain="a  red   pen\nb blue ink\n")
    assert load_dataset(folder).item_texts == ("red pen", "blue ink")


def test_missing_folder(tmp_path):
    message = message_of(tmp_path / "none")
    assert message.startswith(f"{tmp_path / 'none'}: no such folder; ") and "--data=sample" in message


def test_missing_items_file(tmp_path):
    folder = write_folder(tmp_path / "shop", items=None)
    assert message_of(folder).startswith(f"{folder}: holds neither items.jsonl nor item_plain_text.txt; ")


def test_missing_and_empty_sequences_file(tmp_path):
    folder = write_folder(tmp_path / "shop", sequences=None)
    remedy = "write one line a user: USER ITEM ITEM ... in chronological order"
    assert message_of(folder) == f"{folder / 'user_sequence.txt'}: no such file; {remedy}"
    write_folder(folder, sequences="")
    assert message_of(folder) == f"{folder / 'user_sequence.txt'}: the file is empty; {remedy}"


def test_empty_items_file(tmp_path):
    folder = write_folder(tmp_path / "shop", items="")
    assert message_of(folder).startswith(f"{folder / 'items.jsonl'}: the file is empty; write one line an item: ")


def test_non_utf8_names_the_line(tmp_path):
    folder = write_folder(tmp_path / "shop")
    (folder / "user_sequence.txt").write_bytes(b"u a b c\nv\xff a b\n")
    assert message_of(folder).startswith(f"{folder / 'user_sequence.txt'}:2: not UTF-8 text")


@pytest.mark.parametrize(
    ("line", "found", "remedy"),
    [
        ('{"id": "b", "title": ', "not a JSON object (Expecting value)", 'write one line an item: {"id"'),
        ('["b"]', "a JSON list, not an object", 'write one line an item: {"id"'),
        ('{"title": "B"}', "no id", "give every item an id without blanks"),
        ('{"id": "b\\tc", "title": "B"}', "the id 'b\\tc' holds a control character", "give every item an id"),
        ('{"id": "b", "title": {"en": "B"}}', "field 'title' is a JSON dict", "strings, numbers or lists of strings"),
        ('{"id": "\\ud800", "title": "B"}', "the id '\\ud800' holds half a surrogate pair", "give every item an id"),
        ('{"id": ["b"], "title": "B"}', "the id is ['b'], not a text", "give every item an id without blanks"),
        ('{"id": true, "title": "B"}', "the id is True, not a text", "give every item an id without blanks"),
        ('{"id": "b", "title": ' + "[" * 100_000, "not a JSON object (nested too deeply)", "write one line an item"),
        ('{"id": ' + "9" * 5000 + "}", "not a JSON object (Exceeds the limit", "write one line an item"),
        ('{"id": "b", "\\ud800": {}}', "field '\\ud800' is a JSON dict", "strings, numbers or lists of strings"),
        ('{"id": "b", "title": true}', "field 'title' is a JSON bool", "strings, numbers or lists of strings"),
        ('{"id": "a", "title": "B"}', "item a was already described on line 1", "remove one of the two"),
    ],
)
def test_faulty_item_lines(tmp_path, line, found, remedy):
    folder = write_folder(tmp_path / "shop", "u a a a\n", items='{"id": "a", "title": "A"}\n' + line + "\n")
    message = message_of(folder)
    assert message.startswith(f"{folder / 'items.jsonl'}:2: {found}") and remedy in message


def test_duplicate_item_in_plain_text(tmp_path):
    folder = write_folder(tmp_path / "shop", "u a a a\n", items=None, plain="a pen\nb ink\na pencil\n")
    expected = f"{folder / 'item_plain_text.txt'}:3: item a was already described on line 1; remove one of the two"
    assert message_of(folder) == expected


def test_unknown_item(tmp_path):
    folder = write_folder(tmp_path / "shop", "u a b c\nv a z b\n")
    assert message_of(folder) == (
        f"{folder / 'user_sequence.txt'}:2: item z in the sequence of user v is not in {folder / 'items.jsonl'}; "
        "describe it there or remove it from the sequence"
    )


def test_duplicate_user(tmp_path):
    folder = write_folder(tmp_path / "shop", "u a b c\nv a b c\nu c b a\n")
    assert message_of(folder) == (
        f"{folder / 'user_sequence.txt'}:3: user u already has a sequence on line 1; "
        "join the two in chronological order"
    )


def test_user_without_items(tmp_path):
    folder = write_folder(tmp_path / "shop", "u a b c\nv\n")
    message = message_of(folder)
    assert message.startswith(f"{folder / 'user_sequence.txt'}:2: user v has no items; remove the line")


def test_blank_text_is_allowed_and_warned_of(tmp_path, caplog):
    items = [{"id": "a", "title": ""}, {"id": "b", "brand": "Unknown"}]
    assert load_dataset(write_folder(tmp_path / "blank", "u a b a\n", items)).item_texts == ("", "")
    assert "2 of 2 items have blank text (a, b)" in caplog.text
    items = [{"id": "a", "title": "A"}] + [{"id": item, "title": " "} for item in "bcde"]
    dataset = load_dataset(write_folder(tmp_path / "shop", items=items))
    assert dataset.item_texts == ("title: A", "", "", "", "")
    assert "4 of 5 items have blank text (b, c, d, ...)" in caplog.text


@pytest.mark.parametrize(
    ("items", "texts", "users", "sequence"),
    [(("a",), (), ("u",), [0]), (("a",), ("A",), (), [0]), (("a",), ("A",), ("u",), [1]), (("a",), ("A",), ("u",), [])],
)
def test_an_inconsistent_dataset_cannot_be_made(items, texts, users, sequence):
    with pytest.raises(ValueError):
        Dataset("shop", users, items, texts, (np.asarray(sequence, np.int32),))
