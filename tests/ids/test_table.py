import json
import unicodedata

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from idgenrec_jax.data.text import Tokenizer
from idgenrec_jax.data.words import WordSplitter
from idgenrec_jax.decoding.trie import build_trie
from idgenrec_jax.errors import InputError
from idgenrec_jax.export.folders import write_item_ids
from idgenrec_jax.export.recommend import load_items
from idgenrec_jax.ids.table import (
    MAX_GIVEN_TOKENS,
    MAX_ID_TOKENS,
    IdTable,
    clean_to_words,
    load_table,
    make_unique,
    save_table,
    without_repeats,
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
        ("Cafe\u0301, noir", "Caf\u00e9 noir"),
        ("हिन्दी, किताब!", "हिन्दी किताब"),
        ("无线耳机。", "无线耳机"),
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
        ('{"item": "A1", "id": "pen", "tokens": ' + "[" * 100_000 + "\n", 1, ["JSON", "nested too deeply"]),
        ('{"item": "A1", "id": "pen", "tokens": [' + "9" * 5000 + "]}\n", 1, ["JSON", "4300 digits"]),
        ('{"item": "A1", "id": "pen \\ud83d"}\n', 1, ["half a surrogate pair", "\\ud83d"]),
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


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ("devices verano espresso machine verano", "devices verano espresso machine"),
        ("Nail nail, NAIL art", "Nail art"),
        ("pen pens pen2 2 2", "pen pens pen2 2"),
        ("stra\u00dfe STRASSE weg", "stra\u00dfe weg"),
        ("cafe\u0301 caf\u00e9", "caf\u00e9"),
        ("\u0440\u0443\u0447\u043a\u0430 \u0420\u0443\u0447\u043a\u0430", "\u0440\u0443\u0447\u043a\u0430"),
        ("a b a", "a b"),
        ("!?", ""),
    ],
)
def test_a_word_that_recurs_is_written_once(raw, words):
    assert without_repeats(raw) == words
    assert without_repeats(raw, WordSplitter(["title: a plain catalogue"])) == words


CHINESE = [
    "\u84dd\u7259\u8033\u673a", "\u84dd\u7259\u97f3\u7bb1", "\u5145\u7535\u97f3\u7bb1", "\u8033\u673a\u5145\u7535"
]  # fmt: skip


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        # Bluetooth headphones, bluetooth; with a blank and without.
        ("\u84dd\u7259\u8033\u673a\u84dd\u7259", "\u84dd\u7259\u8033\u673a"),
        ("\u84dd\u7259\u8033\u673a \u84dd\u7259", "\u84dd\u7259\u8033\u673a"),
        ("\u84dd\u7259 \u84dd\u7259\u8033\u673a", "\u84dd\u7259 \u8033\u673a"),
        # Nothing recurs, or a letter only.
        ("\u84dd\u7259\u8033\u673a \u5145\u7535", "\u84dd\u7259\u8033\u673a \u5145\u7535"),
        ("\u97f3\u7bb1\u7684\u8033\u673a\u7684", "\u97f3\u7bb1\u7684\u8033\u673a\u7684"),
        ("\u97f3\u7bb1 \u7684 \u8033\u673a \u7684", "\u97f3\u7bb1 \u7684 \u8033\u673a"),
        ("USB\u8033\u673a usb\u97f3\u7bb1", "USB\u8033\u673a \u97f3\u7bb1"),
    ],
)
def test_a_word_of_a_script_without_blanks_is_written_once(raw, words):
    splitter = WordSplitter(CHINESE)
    assert splitter.split(CHINESE[0]) == ["\u84dd\u7259", "\u8033\u673a"]
    assert without_repeats(raw, splitter) == words


def test_no_number_makes_an_id_unique_that_is_a_word_of_it(tokenizer):
    taken, next_number = set(), {}
    found = [make_unique("pen 2", "A1", taken, tokenizer, next_number=next_number)[0] for _ in range(3)]
    assert found == ["pen 2", "pen 2 3", "pen 2 4"]


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


@pytest.mark.parametrize("base", ["\u0915\u093f" * 60, "a" + "\u0301" * 80 + "b"])
def test_make_unique_never_cuts_a_mark_from_its_letter(base):
    text, tokens = make_unique(base, "A1", set(), byte_tokenizer(), next_number={})
    assert len(tokens) <= MAX_ID_TOKENS
    assert text == "item" or (base.startswith(text) and unicodedata.category(base[len(text)])[0] == "L")
    assert (text == "item") == base.startswith("a")


def test_numbers_that_the_tokenizer_cannot_write_make_nothing_unique():
    backend = tokenizers.Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 1, "?": 2, "pen": 3}, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = Tokenizer(backend, pad_token="<pad>", eos_token="</s>")
    taken, numbers = set(), {}
    assert [make_unique("pen", "A", taken, tokenizer, next_number=numbers)[1] for _ in range(2)] == [(3,), (3, 2)]
    with pytest.raises(InputError, match="the tokenizer writes 3 and 4 alike"):
        make_unique("pen", "A", taken, tokenizer, next_number=numbers)


def byte_tokenizer():
    """Every byte is a token, so every letter of Hindi takes three."""
    words = ["<pad>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = tokenizers.Tokenizer(models.BPE({word: index for index, word in enumerate(words)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return Tokenizer(backend, pad_token="<pad>", eos_token="</s>")


def test_ids_in_other_scripts_keep_their_marks_and_fit(tmp_path):
    given = ["\u0915\u0940", "\u0915\u093e", "\u0e01\u0e35\u0e15\u0e32\u0e23\u0e4c \u0e44\u0e1f\u0e1f\u0e49\u0e32"]
    path = write(tmp_path, "".join(f"{item} {text}\n" for item, text in zip(ITEMS, given, strict=True)))
    table = load_table(path, ITEMS, byte_tokenizer())
    assert table.texts == tuple(given)
    # Two letters of three bytes; Thai words take more tokens than the ID generator may write.
    assert len(table.tokens[0]) == 6 and len(table.tokens[2]) > MAX_ID_TOKENS


def test_ids_that_are_one_by_unknown_words_say_so(tmp_path, tokenizer):
    path = write(tmp_path, "A1 \u65e0\u7ebf\nB2 \u84dd\u7259\nC3 pen\n")
    with pytest.raises(InputError) as error:
        load_table(path, ITEMS, tokenizer)
    assert str(error.value).startswith(f"{path}:2: item 'B2' has the ID of item 'A1' on line 1 ('\u84dd\u7259'); ")
    assert "the tokenizer writes <unk> for '\u84dd\u7259', '\u65e0\u7ebf', which it does not know" in str(error.value)


def test_ids_of_letters_that_vanish_say_so(tmp_path):
    letters = {letter: index for index, letter in enumerate(["<pad>", "</s>", *"abcdefghijklmnopqrstuvwxyz"])}
    backend = tokenizers.Tokenizer(models.BPE(letters, []))
    tokenizer = Tokenizer(backend, pad_token="<pad>", eos_token="</s>")
    with pytest.raises(InputError, match="leaves out '\u7ebf', '\u7259', which it does not know"):
        load_table(write(tmp_path, "A1 pen\u7259\nB2 pen\u7ebf\nC3 ink\n"), ITEMS, tokenizer)
    with pytest.raises(InputError, match=r"ids.txt:2: the tokenizer has no token for the ID of item 'B2' \('\u7ebf'\)"):
        load_table(write(tmp_path, "A1 pen\nB2 \u7ebf\nC3 ink\n"), ITEMS, tokenizer)
    assert tokenizer.encode("aXb") == tokenizer.encode("ab")


def test_ids_with_a_word_that_is_lost_are_warned_about(tmp_path, tokenizer, caplog):
    path = write(tmp_path, "A1 pen \u65e0\u7ebf\nB2 pen\nC3 ink\n")
    load_table(path, ITEMS, tokenizer)
    (record,) = caplog.records
    expected = f"IDs of {path}: the tokenizer does not know words of 1 of 3, such as '\u65e0\u7ebf'"
    assert record.getMessage().startswith(expected)


def test_ids_spelt_like_added_tokens_are_text(tmp_path, tokenizer):
    backend = tokenizers.Tokenizer.from_str(tokenizer._backend.to_str())
    backend.add_tokens(["skincare", tokenizers.AddedToken("<brand>", lstrip=True)])
    backend.add_special_tokens(["<extra_id_0>", tokenizers.AddedToken("lamp", rstrip=True, special=True)])
    added = Tokenizer(backend, pad_token="<pad>", eos_token="</s>")
    path = write(tmp_path, "A1 <extra_id_0> skincare\nB2 </s> <brand> 2\nC3 lamp skincare\n")
    table = load_table(path, ITEMS, added)
    assert table.texts == ("extra_id_0 skincare", "s brand 2", "lamp skincare")
    assert not {token for tokens in table.tokens for token in tokens} & (added.special_ids - {added.unknown_id})
    save_table(table, tmp_path / "saved.jsonl")
    assert load_table(tmp_path / "saved.jsonl", ITEMS, added) == table
    taken = set(table.tokens)
    assert make_unique("lamp skincare", "A", taken, added, next_number={})[0] == "lamp skincare 2"
    trie = build_trie(table.tokens, vocab_size=added.size, eos_token_id=added.eos_id, pad_token_id=added.pad_id)
    assert trie.num_items == 3


def test_names_with_blanks_are_kept_and_need_a_line_of_json(tmp_path, tokenizer):
    items = ("A 1", "A  1", "007", "Ключ\u3000два")
    texts = ("red pen", "blue ink", "green mug", "red mug")
    table = IdTable(items, texts, tuple(tuple(tokenizer.encode(text)) for text in texts))
    save_table(table, tmp_path / "ids.jsonl")
    assert load_table(tmp_path / "ids.jsonl", items, tokenizer) == table
    # The exported file, as the script that stands beside it reads it.
    write_item_ids(table, [[*tokens, 1] for tokens in table.tokens], tmp_path / "item_ids.jsonl")
    assert load_items(tmp_path / "item_ids.jsonl")[1] == dict(zip(items, map(list, table.tokens), strict=True))
    hint = """; the name 'A 1' has blanks, for which a line is {"item": ..., "id": ..., "tokens": [...]}"""
    for text in ("A 1 red pen\n", "007 green mug\n"):
        with pytest.raises(InputError) as caught:
            load_table(write(tmp_path, text), items, tokenizer)
        assert str(caught.value).endswith(hint)
