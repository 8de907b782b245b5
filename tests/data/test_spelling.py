"""What a tokenizer loses: said once where it is a part, refused where nothing is left."""

import logging

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from idgenrec_jax.data import spelling
from idgenrec_jax.data.sample import load_sample, sample_tokenizer
from idgenrec_jax.data.spelling import check_spelling, lost_parts, vanishing_letters
from idgenrec_jax.data.text import Tokenizer
from idgenrec_jax.errors import InputError

CHINESE = ["无线耳机", "蓝牙鼠标", "机械键盘", "手机壳"]


@pytest.fixture(autouse=True)
def nothing_said_yet():
    spelling._warn_once.cache_clear()


def wrapped(model, pre_tokenizer=None, decoder=None, normalizer=None):
    backend = tokenizers.Tokenizer(model)
    for name, part in (("pre_tokenizer", pre_tokenizer), ("decoder", decoder), ("normalizer", normalizer)):
        if part is not None:
            setattr(backend, name, part)
    return Tokenizer(backend, pad_token="<pad>", eos_token="</s>")


def numbered(*words):
    return {word: index for index, word in enumerate(["<pad>", "</s>", *words])}


def letters_only():
    """Drops, without a word, what is not a small letter."""
    return wrapped(models.BPE(numbered(*"abcdefghijklmnopqrstuvwxyz :"), []), decoder=decoders.Fuse())


def some_bytes():
    """Bytes of ASCII alone."""
    vocabulary = numbered(*(chr(code) for code in range(33, 127)), "\u0120")
    return wrapped(models.BPE(vocabulary, []), pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel())


def all_bytes():
    vocabulary = numbered(*sorted(pre_tokenizers.ByteLevel.alphabet()))
    return wrapped(models.BPE(vocabulary, []), pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel())


def byte_pieces():
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((f"<0x{code:02X}>", -9.0) for code in range(256))]
    pieces += [(character, -3.0) for character in "\u2581abcdefghijklmnopqrstuvwxyz:"]
    model = models.Unigram(pieces, unk_id=2, byte_fallback=True)
    decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse(), decoders.Metaspace()])
    return wrapped(model, pre_tokenizers.Metaspace(), decoder)


def whole_words():
    words = numbered("[UNK]", "red", "pen", "title", ":")
    return wrapped(models.WordPiece(words, unk_token="[UNK]"), pre_tokenizers.BertPreTokenizer(), decoders.WordPiece())


def without_accents():
    words = numbered("[UNK]", "red", "pen", "\u0915", "##\u0924")
    normalizer = normalizers.BertNormalizer(strip_accents=True, lowercase=True)
    model = models.WordPiece(words, unk_token="[UNK]")
    return wrapped(model, pre_tokenizers.BertPreTokenizer(), decoders.WordPiece(), normalizer)


def test_what_a_tokenizer_knows_is_not_mentioned(caplog):
    dataset = load_sample()
    check_spelling(dataset.item_texts, sample_tokenizer(), "item texts")
    # Case and symbols are no loss.
    check_spelling(["Red pen ☃ ®", "red pen", "RED  PEN"], sample_tokenizer(), "item texts")
    for make in (all_bytes, byte_pieces):
        assert vanishing_letters(CHINESE, make()) == frozenset()
        check_spelling(CHINESE, make(), "item texts")
    assert caplog.records == []


@pytest.mark.parametrize("make", [sample_tokenizer, letters_only, some_bytes, whole_words])
def test_texts_of_which_nothing_is_left_are_refused(make):
    for texts in (CHINESE, [f"title: {text}" for text in CHINESE], CHINESE[:1]):
        with pytest.raises(InputError) as caught:
            check_spelling(texts, make(), "item texts")
        message = str(caught.value)
        assert message.startswith(f"item texts: the tokenizer does not know words of {len(texts)} of {len(texts)}, ")
        assert "nothing is left to learn from; give a tokenizer that knows their script with --config" in message
        if len(texts) > 1:
            assert f"; {len(texts) - 1} of {len(texts)} cannot be told from another, such as {texts[0]!r}" in message


@pytest.mark.parametrize("make", [sample_tokenizer, letters_only, some_bytes, whole_words])
def test_a_part_that_is_lost_is_said_once_with_share_and_examples(make, caplog):
    texts = ["red pen", "pen", "red", "red 耳机", "red 鼠标"]
    with caplog.at_level(logging.WARNING):
        check_spelling(texts, make(), "item texts")
        check_spelling(texts, make(), "item texts")
    (record,) = caplog.records
    message = record.getMessage()
    assert message.startswith("item texts: the tokenizer does not know words of 2 of 5, such as '耳")
    assert "1 of 5 cannot be told from another, such as 'red 耳机' and 'red 鼠标'" in message
    if make in (sample_tokenizer, whole_words):
        assert "2 of " in message and "%" in message


def test_marks_that_are_stripped_are_lost():
    tokenizer = without_accents()
    assert tokenizer.encode("\u0915\u0941\u0924") == tokenizer.encode("\u0915\u0942\u0924")
    assert vanishing_letters(["\u0915\u0941\u0924", "red"], tokenizer) == {"\u0941"}
    with pytest.raises(InputError, match="cannot be told from another"):
        check_spelling(["\u0915\u0941\u0924", "\u0915\u0942\u0924"], tokenizer, "item texts")


def test_the_parts_that_are_lost():
    assert lost_parts(["red 耳机 pen ☃ 鼠", "pen"], sample_tokenizer()) == [["耳机", "鼠"], []]
    assert lost_parts(["Red 耳", "pen"], letters_only()) == [["R", "耳"], []]
    assert lost_parts(["red é"], some_bytes()) == [["é"]]
