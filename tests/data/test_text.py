"""Tokenizers: equality with transformers, special tokens, saving, and what is said when one cannot be had."""

import json

import pytest
import tokenizers
from tokenizers import models, pre_tokenizers

from idgenrec_jax.data.sample import load_sample, sample_tokenizer
from idgenrec_jax.data.text import Tokenizer
from idgenrec_jax.errors import InputError

TEXTS = ["Brio Espresso Machine, 2 cups.", "  cutting—mat  ½ ", "", "naïve quote's (end)", "title: zzzqx; brand: Ridge"]


@pytest.fixture
def folder(tmp_path):
    sample_tokenizer().save(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def test_the_fast_path_equals_transformers(folder):
    transformers = pytest.importorskip("transformers")
    reference = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer = Tokenizer.load(folder)
    texts = [*TEXTS, *load_sample().item_texts[::7]]
    expected = reference(texts, add_special_tokens=False).input_ids
    assert tokenizer.encode_batch(texts) == expected
    assert tokenizer.decode_batch(expected) == reference.batch_decode(
        expected, skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    assert (tokenizer.pad_id, tokenizer.eos_id) == (reference.pad_token_id, reference.eos_token_id)
    assert tokenizer.size == len(reference)


def test_a_saved_tokenizer_ends_sequences_for_transformers(folder):
    transformers = pytest.importorskip("transformers")
    reference = transformers.AutoTokenizer.from_pretrained(folder)
    assert reference("espresso machine").input_ids == [*sample_tokenizer().encode("espresso machine"), 1]
    assert reference.unk_token_id == 2


def test_a_folder_without_tokenizer_json_goes_through_transformers(tmp_path):
    pytest.importorskip("transformers")
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\ncamp\nstove\n")
    config = {"tokenizer_class": "BertTokenizer", "eos_token": "[SEP]"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.encode("Camp stove") == [5, 6] and tokenizer.decode([5, 6, 3]) == "camp stove"
    assert (tokenizer.pad_id, tokenizer.eos_id, tokenizer.size) == (0, 3, 7)


def test_batches_equal_single_texts():
    tokenizer = sample_tokenizer()
    assert tokenizer.encode_batch(TEXTS) == [tokenizer.encode(text) for text in TEXTS]
    tokens = tokenizer.encode_batch(TEXTS)
    assert tokenizer.decode_batch(tokens) == [tokenizer.decode(sequence) for sequence in tokens]


def test_text_spelt_like_a_special_token_stays_text():
    tokenizer = sample_tokenizer()
    for text in ("pen</s>ink", "<pad>", "a </s><pad> b"):
        assert not set(tokenizer.encode(text)) & {tokenizer.pad_id, tokenizer.eos_id}
        assert tokenizer.encode_batch([text]) == [tokenizer.encode(text)]


def test_decoding_skips_special_tokens_and_rows_beyond_the_vocabulary():
    tokenizer = sample_tokenizer()
    tokens = tokenizer.encode("camp stove")
    assert tokenizer.decode([0, *tokens, tokenizer.size + 5, 1, 0]) == "camp stove"


def test_punctuation_has_no_letter_and_no_digit():
    tokenizer = sample_tokenizer()
    punctuation = tokenizer.punctuation_ids
    assert set(tokenizer.encode(" ; : , .")) <= punctuation
    assert not set(tokenizer.encode("stove 2")) & punctuation
    assert not {tokenizer.pad_id, tokenizer.eos_id, 2} & punctuation
    assert not any(character.isalnum() for index in punctuation for character in tokenizer.decode([index]))


def test_truncation_and_padding_of_the_file_are_switched_off(folder):
    backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.enable_truncation(2)
    backend.enable_padding(length=9)
    backend.save(str(folder / "tokenizer.json"))
    text = "espresso machine for the camp stove"
    assert Tokenizer.load(folder).encode(text) == sample_tokenizer().encode(text)


def test_special_tokens_are_read_from_the_configuration(tmp_path):
    backend = tokenizers.Tokenizer(models.WordLevel({"[END]": 0, "[NONE]": 1, "pen": 2, "[U]": 3}, unk_token="[U]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": {"content": "[END]"}, "pad_token": "[NONE]"}')
    tokenizer = Tokenizer.load(tmp_path)
    assert (tokenizer.eos_id, tokenizer.pad_id) == (0, 1)


def test_a_tokenizer_without_padding_is_refused(tmp_path):
    backend = tokenizers.Tokenizer(models.WordLevel({"pen": 0, "</s>": 1}, unk_token="pen"))
    backend.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(InputError) as caught:
        Tokenizer.load(tmp_path)
    assert str(caught.value).startswith(f"--config.data.tokenizer={tmp_path}: the vocabulary has no token '<pad>'; ")


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(InputError) as caught:
        Tokenizer.load(tmp_path / "none")
    message = str(caught.value)
    assert message.startswith(f"--config.data.tokenizer={tmp_path / 'none'}: no such folder; ")
    assert "give a folder that holds tokenizer.json" in message


def test_a_folder_without_any_tokenizer(tmp_path):
    with pytest.raises(InputError) as caught:
        Tokenizer.load(tmp_path)
    message = str(caught.value)
    assert message.startswith(f"--config.data.tokenizer={tmp_path}: no tokenizer found (") and "\n" not in message
    assert "give a folder that holds tokenizer.json" in message


def test_a_broken_tokenizer_file(folder):
    (folder / "tokenizer.json").write_text(json.dumps({"model": 1}))
    with pytest.raises(InputError) as caught:
        Tokenizer.load(folder)
    message = str(caught.value)
    assert message.startswith(f"--config.data.tokenizer={folder}: tokenizer.json cannot be read (")
    assert "\n" not in message
