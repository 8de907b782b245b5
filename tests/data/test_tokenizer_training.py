"""Tokenizers that are trained on a catalogue's own texts."""

import hashlib
import re
import subprocess
import sys
import unicodedata

import pytest

from idgenrec_jax.data import tokenizer_training
from idgenrec_jax.data.prompts import PromptTokens
from idgenrec_jax.data.sample import load_sample
from idgenrec_jax.data.spelling import check_spelling, lost_parts
from idgenrec_jax.data.templates import default_templates, template_texts
from idgenrec_jax.data.text import Tokenizer
from idgenrec_jax.data.tokenizer_training import learned_texts, train_tokenizer, trained_size
from idgenrec_jax.data.words import find_words
from idgenrec_jax.errors import InputError
from idgenrec_jax.ids.keywords import telling_words
from idgenrec_jax.ids.schemes import unique_table

FIRST_PIECE = 3 + 256
PROMPTS = template_texts([*default_templates(False), *default_templates(True)])
SCRIPTS = {
    "latin": ["title: Café crème brûlée; brand: Žižkov", "title: Größe XL", "title: Crème Größe"],
    "thai": ["title: หูฟังไร้สายสีดำ", "title: เมาส์ไร้สาย", "title: หูฟังสีแดง"],
    "chinese": ["title: 无线耳机 黑色", "title: 无线鼠标", "title: 有线耳机"],
    "arabic": ["title: سماعات لاسلكية", "title: قلم أحمر", "title: قلم أزرق"],
    "hindi": ["title: हिन्दी किताब", "title: लाल किताब"],
    "emoji": ["title: 😀🎧 👩‍👩‍👧", "title: 🎧🖱️ mouse"],
}
ALL_SCRIPTS = [text for texts in SCRIPTS.values() for text in texts]


def trained(texts, size=8000, whole=PROMPTS):
    return Tokenizer.from_json(train_tokenizer(texts, size, whole=whole).to_str())


def written_in_bytes(tokenizer, text):
    return any(3 <= token < FIRST_PIECE for token in tokenizer.encode(text))


@pytest.mark.parametrize("texts", SCRIPTS.values(), ids=SCRIPTS)
def test_a_catalogue_in_any_script_is_read_back_without_bytes_and_every_other_script_by_bytes(texts):
    tokenizer = trained(texts)
    assert (tokenizer.pad_id, tokenizer.eos_id, tokenizer.unknown_id) == (0, 1, 2)
    for text in texts:
        assert tokenizer.decode(tokenizer.encode(text)) == text and not written_in_bytes(tokenizer, text)
    for text in [*ALL_SCRIPTS, "עברית ไทย 漢字 🇩🇪", "e\u0301 combined"]:
        tokens = tokenizer.encode(text)
        assert tokenizer.decode(tokens) == unicodedata.normalize("NFC", text) and 2 not in tokens
    assert written_in_bytes(tokenizer, "ქართული")
    assert lost_parts([*ALL_SCRIPTS, "ქართული"], tokenizer) == [[] for _ in range(len(ALL_SCRIPTS) + 1)]


def test_nothing_is_warned_of_where_bytes_spell_what_the_texts_do_not_have(caplog):
    check_spelling([*ALL_SCRIPTS, "ქართული"], trained(SCRIPTS["latin"]), "item texts")
    assert caplog.records == []


def test_two_processes_make_the_same_bytes():
    code = (
        "import hashlib; from idgenrec_jax.data.sample import load_sample; "
        "from idgenrec_jax.data.tokenizer_training import train_tokenizer; "
        "made = train_tokenizer([*load_sample().item_texts, '无线耳机', 'หูฟัง'], 1000); "
        "print(hashlib.sha256(made.to_str().encode()).hexdigest())"
    )
    made = train_tokenizer([*load_sample().item_texts, "无线耳机", "หูฟัง"], 1000)
    assert made.get_vocab_size() == 1000
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == hashlib.sha256(made.to_str().encode()).hexdigest()


def test_what_is_written_and_read_again_is_the_same_to_the_last_digit(tmp_path):
    tokenizer = trained(load_sample().item_texts, 1000)
    tokenizer.save(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    assert loaded.equals(tokenizer) and loaded.to_json() == tokenizer.to_json()


def test_words_of_prompts_names_of_fields_and_digits_take_no_bytes_and_common_ones_a_token_each():
    tokenizer = trained(SCRIPTS["thai"], whole=[*PROMPTS, "магазин"])
    words = {word for prompt in [*PROMPTS, "магазин"] for word in find_words(prompt)}
    assert {len(tokenizer.encode(word)) for word in words} == {1}
    for text in ("title: brand: categories: description:", "0123456789", "магазин", "".join(map(chr, range(33, 127)))):
        assert not written_in_bytes(tokenizer, text)
        assert tokenizer.decode(tokenizer.encode(text)) == text
    prompt = PromptTokens(default_templates(False)[0], tokenizer, "магазин")
    assert tokenizer.decode(prompt.separator) == ";" and len(prompt.separator) == 1


@pytest.mark.parametrize("texts", [[], [""], ["pen"], ["title: pen", "", "title: red pen"]])
@pytest.mark.parametrize("size", [512, 500_000])
def test_of_the_smallest_catalogue_a_small_working_vocabulary_is_made(texts, size):
    tokenizer = trained(texts, size, whole=())
    assert FIRST_PIECE + 94 <= tokenizer.size < 400
    assert tokenizer.decode(tokenizer.encode("Blue pen, 无线")) == "Blue pen, 无线"


def test_of_many_characters_the_most_frequent_are_entries_and_the_others_bytes():
    letters = [chr(code) for code in range(0x4E00, 0x4E00 + 3000)]
    texts = ["".join(letters[: number + 1]) for number in range(0, 3000, 100)]
    tokenizer = trained(texts, 1000, whole=())
    assert tokenizer.size <= 1000
    # Half of the entries that are no bytes and no special tokens, less printable ASCII.
    known = (1000 - FIRST_PIECE) // 2 - 94
    assert not written_in_bytes(tokenizer, "".join(letters[:known])) and written_in_bytes(tokenizer, letters[-1])
    assert all(tokenizer.decode(tokenizer.encode(text)) == text for text in texts)


def test_the_spelling_of_a_byte_or_a_special_token_is_text():
    tokenizer = trained(["title: <0x41> </s> <pad>", "title: <0x41><unk> \x00\x07 \u2581\u2585"])
    assert tokenizer.decode(tokenizer.encode("<0x41>B<0xE4>")) == "<0x41>B<0xE4>"
    assert tokenizer.special_ids.isdisjoint(tokenizer.encode("</s> <pad> <unk>"))


def test_ids_of_a_catalogue_of_many_scripts_are_spelt_and_read_back():
    tokenizer = trained(ALL_SCRIPTS)
    items = tuple(f"item{number}" for number in range(len(ALL_SCRIPTS)))
    table = unique_table(telling_words(ALL_SCRIPTS, tokenizer=tokenizer), items, tokenizer)
    assert tokenizer.decode_batch(table.tokens) == list(table.texts)
    assert len(set(table.tokens)) == len(items)
    assert {"หูฟัง", "耳机", "किताब"} <= {word for text in table.texts for word in text.split()}


def test_of_a_large_catalogue_a_sample_of_bounded_size_is_learned_from(monkeypatch):
    texts = [f"title: thing {number}" for number in range(1000)]
    assert learned_texts(texts) == texts
    monkeypatch.setattr(tokenizer_training, "MOST_CHARACTERS", 1000)
    chosen = learned_texts(texts)
    assert sum(map(len, chosen)) == 1000 and chosen == learned_texts(texts)
    numbers = [int(re.findall("[0-9]+", text)[0]) for text in chosen[:-1]]
    assert len(set(numbers)) == len(numbers) and min(numbers) < 200 < 800 < max(numbers)
    assert learned_texts(["x" * 3000]) == ["x" * 1000]


def test_the_flag_is_train_with_a_size_or_without_and_nothing_else():
    assert [trained_size(name) for name in ("train", "train:512", "train:500000")] == [8000, 512, 500_000]
    assert [trained_size(name) for name in ("", "t5-small", "./train", "training", "runs/train:5")] == [None] * 5
    for size in ("", "abc", "-5", "10", "511", "500001", "8e3", "\u0668000", "8000 "):
        message = f"^--config.data.tokenizer=train:{size}: expected train:SIZE with 512 to 500000 entries, such as "
        with pytest.raises(InputError, match=message):
            trained_size(f"train:{size}")
