import json

import pytest

from idgenrec_jax.errors import InputError
from idgenrec_jax.ids.table import (
    MAX_GIVEN_TOKENS,
    MAX_ID_TOKENS,
    IdTable,
    clean_to_words,
    load_table,
    make_unique,
    save_table,
)

ITEMS = ("A1", "B2", "C3")


def write(tmp_path, text, name="ids.txt"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def table_of(tokenizer, *texts):
    return IdTable(ITEMS, texts, tuple(tuple(tokenizer.encode(text)) for text in texts))


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ("red  pen!", "red pen"),
        ("Vtech, dect-6.0", "Vtech dect 6 0"),
        ("  ?! ", ""),
        ("", ""),
        ("caf\u00e9_x", "caf\u00e9_x"),
    ],
)
def test_clean_to_words(raw, words):
    assert clean_to_words(raw) == words


@pytest.mark.parametrize(
    ("items", "texts", "tokens", "named"),
    [
        (("A", "B"), ("x",), ((1,), (2,)), ["2 items", "1 texts"]),
        (("A", "B"), ("x", "x"), ((1,), (1,)), ["'A'", "'B'"]),
        (("A", "B"), ("x", ""), ((1,), ()), ["'B'", "empty"]),
        (("A", "A"), ("x", "y"), ((1,), (2,)), ["'A'", "twice"]),
    ],
)
def test_table_refuses_what_is_not_one_unique_id_per_item(items, texts, tokens, named):
    with pytest.raises(InputError) as error:
        IdTable(items, texts, tokens)
    assert all(part in str(error.value) for part in named)


def test_saved_table_loads_back_in_the_order_of_the_catalogue(tmp_path, tokenizer):
    table = table_of(tokenizer, "red pen", "red pen old", "caf\u00e9 lamp")
    path = tmp_path / "ids" / "round_0.jsonl"
    save_table(table, path)
    assert load_table(path, ITEMS, tokenizer) == table
    turned = load_table(path, ITEMS[::-1], tokenizer)
    assert (turned.items, turned.texts) == (ITEMS[::-1], table.texts[::-1])
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert rows[0] == {"item": "A1", "id": "red pen", "tokens": tokenizer.encode("red pen")}
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_plain_lines_are_cleaned_and_blank_lines_skipped(tmp_path, tokenizer):
    path = write(tmp_path, "\ufeffC3 old, lamp!\r\n\nA1\tred-pen\nB2 blue   pen\n")
    assert load_table(path, ITEMS, tokenizer) == table_of(tokenizer, "red pen", "blue pen", "old lamp")


def test_json_lines_may_leave_out_tokens(tmp_path, tokenizer):
    rows = [json.dumps({"item": item, "id": text}) for item, text in zip(ITEMS, ("pen", "lamp", "ink"), strict=True)]
    path = write(tmp_path, "\n".join(rows))
    assert load_table(path, ITEMS, tokenizer) == table_of(tokenizer, "pen", "lamp", "ink")


def test_a_blank_id_becomes_the_item_name_made_unique_and_is_warned_about(tmp_path, tokenizer, caplog):
    path = write(tmp_path, "A1\nB2 A1\nC3 ?!\n")
    table = load_table(path, ITEMS, tokenizer)
    assert table.texts == ("A1 2", "A1", "C3")
    assert [record.getMessage() for record in caplog.records] == [
        f"{path}:1: item 'A1' has a blank ID; it is given the ID 'A1 2'",
        f"{path}:3: item 'C3' has a blank ID; it is given the ID 'C3'",
    ]


ROW = '{"item": "A1", "id": "red pen", "tokens": [1, 2]}'


@pytest.mark.parametrize(
    ("content", "line", "named"),
    [
        ("A1 pen\nB2 ink\nC3 lamp\nX9 desk\n", 4, ["'X9'", "not in the catalogue"]),
        ("A1 pen\nA1 ink\n", 2, ["'A1'", "line 1"]),
        ("A1 pen\nB2 ink\n\nC3 pen!\n", 4, ["'C3'", "'A1'", "line 1"]),
        ("A1 pen\n", None, ["2 of 3", "'B2'"]),
        (b"A1 pen\nB2 caf\xe9\n", 2, ["UTF-8"]),
        ("", None, ["empty"]),
        ("  \n\n", None, ["empty"]),
        ("A1 " + "pen " * (MAX_GIVEN_TOKENS + 1), 1, ["'A1'", "91 tokens", "90"]),
        (ROW, 1, ["'A1'", "tokenizer"]),
        ('{"item": "A1", "id": "pen"\n', 1, ["JSON"]),
        ('{"item": "A1", "id": "pen"}\nB2 ink\n', 2, ["JSON"]),
        ('{"item": "A1", "id": 5}\n', 1, ["expected", '"id"']),
        ('{"item": "A1", "id": "pen", "tokens": "5"}\n', 1, ["tokens", "whole numbers"]),
    ],
)
def test_faults_of_a_file_are_one_line_with_place_and_remedy(tmp_path, tokenizer, content, line, named):
    path = write(tmp_path, content)
    with pytest.raises(InputError) as error:
        load_table(path, ITEMS, tokenizer)
    message = str(error.value)
    assert message.startswith(str(path) if line is None else f"{path}:{line}:")
    assert "\n" not in message
    assert ";" in message
    assert all(part in message for part in named)


def test_missing_file_is_named(tmp_path, tokenizer):
    with pytest.raises(InputError, match=r"nowhere\.txt"):
        load_table(tmp_path / "nowhere.txt", ITEMS, tokenizer)


def test_save_names_a_folder_that_cannot_be_written_to(tmp_path, tokenizer):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="cannot be written"):
        save_table(table_of(tokenizer, "pen", "ink", "lamp"), tmp_path / "file" / "ids.jsonl")


def test_make_unique_counts_up_and_falls_back(tokenizer):
    taken, numbers = set(), {}
    made = [make_unique(base, name, taken, tokenizer, next_number=numbers) for base, name in
            [("red pen", "A"), ("red, pen", "B"), ("red pen", "C"), ("", "D4"), ("?", "!"), ("", "!!")]]  # fmt: skip
    assert [text for text, _ in made] == ["red pen", "red pen 2", "red pen 3", "D4", "item", "item 2"]
    assert taken == {tokens for _, tokens in made}
    assert [list(tokens) for _, tokens in made] == [tokenizer.encode(text) for text, _ in made]


@pytest.mark.parametrize("base", ["pen " * 60, "z" * 200])
def test_make_unique_keeps_ids_short_enough_for_a_file(tokenizer, base):
    taken = set()
    for _ in range(120):
        text, tokens = make_unique(base, "A1", taken, tokenizer, next_number={})
        assert text
        assert len(tokens) <= MAX_ID_TOKENS
    assert len(taken) == 120
