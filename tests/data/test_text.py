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


@pytest.mark.parametrize("text", ["a</S>b", "\uff1c/s\uff1e", "\uff1cPAD\uff1e pen", "</S></S>", "<\uff1c/s\uff1e/s>"])
def test_text_spelt_like_a_special_token_after_normalisation_stays_text(text):
    tokenizer = sample_tokenizer()
    assert not set(tokenizer.encode(text)) & {tokenizer.pad_id, tokenizer.eos_id}
    assert tokenizer.encode_batch(["pen", text])[1] == tokenizer.encode(text)
    letters = {character for character in text.lower() if character.isalpha() and character.isascii()}
    assert letters <= set(tokenizer.decode(tokenizer.encode(text)))


def test_added_tokens_are_text_and_special_ones_are_not():
    backend = tokenizers.Tokenizer.from_str(sample_tokenizer()._backend.to_str())
    backend.add_tokens([tokenizers.AddedToken("Brio X", lstrip=True, rstrip=True), "camp"])
    backend.add_special_tokens([tokenizers.AddedToken("stove", lstrip=True, special=True), "$"])
    tokenizer = Tokenizer(backend, pad_token="<pad>", eos_token="</s>")
    first = sample_tokenizer().size
    # "$" was in the vocabulary.
    assert tokenizer.size == first + 3
    assert tokenizer.encode("Brio X camp") == [first, first + 1]
    assert not set(tokenizer.encode("a camp stove, 2 $")) & tokenizer.special_ids
    assert "tove" in tokenizer.decode(tokenizer.encode("a camp stove"))


def test_an_unknown_token_without_a_spelling():
    words = {"<pad>": 0, "</s>": 1, "": 2, "pen": 3}
    backend = tokenizers.Tokenizer(models.WordLevel(words, unk_token=""))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = Tokenizer(backend, pad_token="<pad>", eos_token="</s>")
    assert tokenizer.unknown_id == 2 and tokenizer.encode("pen ink") == [3, 2]


def test_a_vocabulary_without_its_unknown_token_is_named_where_it_is_missed():
    def make(words):
        backend = tokenizers.Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
        return Tokenizer(backend, pad_token="<pad>", eos_token="</s>")

    words = {"<pad>": 0, "</s>": 1, "pen": 2}
    assert make(words).encode("pen") == [2]
    with pytest.raises(InputError, match=r"tokenizer: the tokenizer cannot write every text \(.*UNK.*\);"):
        make(words).encode("ink")
    # The way out.
    assert make(words | {"[UNK]": 3}).encode("ink") == [3]


def test_size_counts_from_the_last_token():
    backend = tokenizers.Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 1, "pen": 9, "?": 4}, unk_token="?"))
    assert Tokenizer(backend, pad_token="<pad>", eos_token="</s>").size == 10


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


def test_a_token_of_marks_alone_is_part_of_a_word():
    words = ["<pad>", "</s>", "<unk>", "\u0940", "\u0301", "\u0e49", "\ufe0f", "\u2764", "_", "\u0663"]
    backend = tokenizers.Tokenizer(
        models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>")
    )
    tokenizer = Tokenizer(backend, pad_token="<pad>", eos_token="</s>")
    assert tokenizer.punctuation_ids == {6, 7, 8}


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


def save_words(folder, vocabulary, **config):
    """A folder with a tokenizer of words."""
    backend = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def test_padding_and_end_that_are_no_added_tokens_stand_for_no_text(tmp_path):
    save_words(tmp_path, {"?": 0, "pen": 1, "[PAD]": 2, "[END]": 3}, pad_token="[PAD]", eos_token="[END]")
    tokenizer = Tokenizer.load(tmp_path)
    assert (tokenizer.pad_id, tokenizer.eos_id, tokenizer.unknown_id) == (2, 3, 0)
    assert tokenizer.special_ids == {0, 2, 3}
    assert tokenizer.decode([1, 3, 2]) == "pen"
    tokenizer.save(tmp_path / "again")
    assert Tokenizer.load(tmp_path / "again").decode([1, 3, 2]) == "pen"


@pytest.mark.parametrize(
    ("vocabulary", "config", "message"),
    [
        ({"pen": 0, "</s>": 1, "?": 2}, {}, "the vocabulary has no token '<pad>'; "),
        ({"pen": 0, "<pad>": 1, "?": 2}, {}, "the vocabulary has no token '</s>'; "),
        ({"</s>": 0, "?": 2}, {"pad_token": "</s>"}, "'</s>' is both the padding and the end-of-sequence token; "),
        ({"</s>": 0, "?": 2}, {"pad_token": "?"}, "'?' is both the padding and the unknown token; "),
        ({"<pad>": 0, "?": 2}, {"eos_token": "?"}, "'?' is both the end-of-sequence and the unknown token; "),
    ],
)
def test_padding_and_end_need_tokens_of_their_own(vocabulary, config, message, tmp_path):
    save_words(tmp_path, vocabulary, **config)
    with pytest.raises(InputError) as caught:
        Tokenizer.load(tmp_path)
    assert str(caught.value).startswith(f"--config.data.tokenizer={tmp_path}: {message}")
    # The first way out that the message names.
    assert 'name tokens of its vocabulary as "pad_token" and "eos_token" in tokenizer_config.json' in str(caught.value)
    save_words(tmp_path, vocabulary | {"[P]": 8, "[E]": 9}, pad_token="[P]", eos_token="[E]")
    tokenizer = Tokenizer.load(tmp_path)
    assert (tokenizer.pad_id, tokenizer.eos_id) == (8, 9)


def test_a_tokenizer_of_transformers_without_padding_is_refused_with_a_way_out(tmp_path):
    transformers = pytest.importorskip("transformers")
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\ncamp\nstove\n")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    with pytest.raises(InputError, match="the tokenizer names no eos_token; ") as caught:
        Tokenizer.load(tmp_path)
    assert "tokenizer.add_special_tokens(" in str(caught.value) and "None" not in str(caught.value)
    reference = transformers.AutoTokenizer.from_pretrained(tmp_path)
    reference.add_special_tokens({"pad_token": "<pad>", "eos_token": "</s>"})
    reference.save_pretrained(tmp_path)
    tokenizer = Tokenizer.load(tmp_path)
    assert (tokenizer.pad_id, tokenizer.eos_id) == (7, 8) and tokenizer.encode("camp stove") == [5, 6]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer_config.json", "[]", "found a JSON list, expected an object"),
        ("special_tokens_map.json", '{"pad_token": 3}', "field pad_token is 3, expected a token"),
        ("tokenizer_config.json", '{"eos_token": {"text": "x"}}', "field eos_token is {'text': 'x'}, expected a token"),
    ],
)
def test_a_configuration_that_names_no_tokens(name, content, message, folder):
    (folder / name).write_text(content)
    with pytest.raises(InputError) as caught:
        Tokenizer.load(folder)
    assert str(caught.value).startswith(f"{folder / name}: {message}")


def test_code_of_a_folder_is_never_run(tmp_path):
    pytest.importorskip("transformers")
    program = f"open({str(tmp_path / 'was_run')!r}, 'w')\nclass Own: pass\n"
    (tmp_path / "own.py").write_text(program)
    own = {"AutoTokenizer": [None, "own.Own"]}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"auto_map": own, "tokenizer_class": "Own"}))
    (tmp_path / "config.json").write_text(json.dumps({"auto_map": {"AutoConfig": "own.Own"}, "model_type": "own"}))
    with pytest.raises(InputError, match="its tokenizer is code of its own, which is never run here; ") as caught:
        Tokenizer.load(tmp_path)
    assert "tokenizer.json" in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "was_run").exists()
    # The way out: the same folder with a tokenizer.json.
    sample_tokenizer().save(tmp_path / "fast")
    (tmp_path / "fast" / "tokenizer.json").rename(tmp_path / "tokenizer.json")
    assert Tokenizer.load(tmp_path).encode("camp") == sample_tokenizer().encode("camp")
    assert not (tmp_path / "was_run").exists()


def test_a_tokenizer_that_is_not_fast_is_refused_with_a_way_out(tmp_path):
    pytest.importorskip("transformers")
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "ByT5Tokenizer"}')
    with pytest.raises(InputError, match="ByT5Tokenizer is no fast tokenizer, .*; use a T5 or mT5 with its own"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize(
    ("config", "extra"),
    [
        ({"config.json": '{"model_type": "t5"}'}, 100),
        ({}, 100),
        ({"tokenizer_config.json": '{"tokenizer_class": "T5Tokenizer", "extra_ids": 0}'}, 0),
    ],
)
def test_a_folder_with_a_sentencepiece_model_alone(config, extra, tmp_path):
    sentencepiece = pytest.importorskip("sentencepiece")
    pytest.importorskip("transformers")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(load_sample().item_texts), model_prefix=str(tmp_path / "spiece"), vocab_size=400,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=9,
    )  # fmt: skip
    for name, content in config.items():
        (tmp_path / name).write_text(content)
    tokenizer = Tokenizer.load(tmp_path)
    reference = sentencepiece.SentencePieceProcessor(str(tmp_path / "spiece.model"))
    texts = [*TEXTS, "\u65e5\u672c", "Cafe\u0301 \u2167", *load_sample().item_texts[::9]]
    assert tokenizer.encode_batch(texts) == reference.encode(texts)
    assert tokenizer.size == reference.vocab_size() + extra
    assert len(tokenizer.special_ids) == 3 + extra
    assert (tokenizer.pad_id, tokenizer.eos_id, tokenizer.unknown_id) == (0, 1, 2)


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
