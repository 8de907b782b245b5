import functools
import logging
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from idgenrec_jax.decoding.diverse import diverse_beam_search
from idgenrec_jax.errors import InputError
from idgenrec_jax.ids import generation as generation_module
from idgenrec_jax.ids.generation import CandidateDecoder, IdGeneration, item_prompts
from idgenrec_jax.ids.table import clean_to_words, without_repeats
from idgenrec_jax.models.t5 import T5, T5Config

NUM_GROUPS = 4
PENALTIES = (1.0, 2.0, 3.0)
MIN_LENGTHS = (1, 11)
# Two lengths in tokens, in two buckets; the first texts are shared by many items.
TEXTS = [
    "red pen old",
    "blue lamp great",
    "green desk steel wood red chair",
    "ink paper old pen great lamp",
    "pen ink old",
]


def catalogue(num_items):
    texts = [TEXTS[index * index % 7 % len(TEXTS)] for index in range(num_items)]
    return [f"A{index}" for index in range(num_items)], texts


@pytest.fixture(scope="module")
def id_generator(tokenizer):
    """An untrained generator, at weights large enough to make it write different things about different texts."""
    config = T5Config(
        vocab_size=tokenizer.size + 5, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_decoder_layers=1, num_heads=2,
        eos_token_id=tokenizer.eos_id, pad_token_id=tokenizer.pad_id, decoder_start_token_id=tokenizer.pad_id,
        initializer_factor=3.0, tie_word_embeddings=False,
    )  # fmt: skip
    return nnx.split(T5(config, rngs=nnx.Rngs(1)), nnx.Param)


def make(id_generator, tokenizer, **options):
    options = {
        "num_groups": NUM_GROUPS, "penalties": PENALTIES, "min_lengths": MIN_LENGTHS, "batch_size": 4,
        "batch_divisors": (1,), "max_text_length": 16, "length_buckets": (4, 8), "bucket_overhead": 0,
        "fallback": "suffix",
    } | options  # fmt: skip
    return IdGeneration(id_generator[0], tokenizer, **options)


@functools.partial(jax.jit, static_argnames=("graphdef", "max_length"))
def decode_alone(graphdef, params, tokens, min_length, penalty, *, max_length):
    """One text [1, length] through the model by itself, without padding."""
    model = nnx.merge(graphdef, params)
    mask = jnp.ones(tokens.shape, bool)
    encoded = model.encode(tokens, mask)
    cache = model.start_decoding(encoded, mask, num_beams=NUM_GROUPS, group_size=1, max_length=max_length)

    def step(beam_tokens, position, cache):
        hidden, written = model.decode_step(beam_tokens, position, cache)
        return model.logits(hidden), written

    config = model.config
    return diverse_beam_search(
        step, cache, batch_size=1, num_beams=NUM_GROUPS, num_groups=NUM_GROUPS, diversity_penalty=penalty,
        min_length=min_length, max_length=max_length, vocab_size=config.vocab_size, eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id, start_token_id=config.decoder_start_token_id,
    ).tokens[0]  # fmt: skip


def one_after_the_other(id_generator, tokenizer, texts):
    """Algorithm 1 as published: (ID tokens, or None where all stages fail) for one item after the other."""
    cache, taken, ids = {}, set(), []
    for text in texts:
        ids.append(None)
        for stage in [(length, penalty) for length in MIN_LENGTHS for penalty in PENALTIES]:
            if (text, stage) not in cache:
                source = jnp.asarray([[*tokenizer.encode(text), tokenizer.eos_id]], jnp.int32)
                decoded = decode_alone(*id_generator, source, *stage, max_length=stage[0] + 10)
                cache[text, stage] = tokenizer.decode_batch(np.asarray(decoded).tolist())
            candidates = [tuple(tokenizer.encode(clean_to_words(raw))) for raw in cache[text, stage]]
            free = [tokens for tokens in candidates if tokens and tokens not in taken]
            if free:
                ids[-1] = free[0]
                taken.add(free[0])
                break
    return ids


class Compilations:
    """How many encoders and decoders have been compiled since this was made."""

    def __init__(self):
        self.before = self.total()

    def total(self):
        return np.array([generation_module.encode_batch._cache_size(), generation_module.decode_batch._cache_size()])

    def count(self):
        return (self.total() - self.before).tolist()


@pytest.fixture
def encoded_texts(monkeypatch):
    """The distinct prompts of every batch that the encoder reads from now on."""
    batches, encode = [], generation_module.encode_batch

    def spy(graphdef, params, tokens, lengths, **options):
        rows = zip(np.asarray(tokens).tolist(), np.asarray(lengths).tolist(), strict=True)
        batches.append({tuple(row[:length]) for row, length in rows})
        return encode(graphdef, params, tokens, lengths, **options)

    monkeypatch.setattr(generation_module, "encode_batch", spy)
    return batches


@pytest.mark.slow
def test_batches_give_what_one_item_after_the_other_gives(id_generator, tokenizer):
    names, texts = catalogue(45)
    expected = one_after_the_other(id_generator, tokenizer, texts)
    compilations = Compilations()
    table = make(id_generator, tokenizer, batch_size=5, batch_divisors=(1, 3)).generate(id_generator[1], names, texts)
    encoders, decoders = compilations.count()
    # Two buckets and batches of 5 and of 2; and two minimum lengths.
    assert 2 <= encoders <= 2 * 2 and 4 <= decoders <= 2 * 2 * 2
    assert table.items == tuple(names)
    found = [tokens for tokens, wanted in zip(table.tokens, expected, strict=True) if wanted is not None]
    assert found == [wanted for wanted in expected if wanted is not None]
    assert 20 < len(found) < 45
    assert max(map(len, found)) > 15, "the second minimum length is in use"
    # What no stage makes unique has the words of its first candidate and a number.
    numbered = {text for text, wanted in zip(table.texts, expected, strict=True) if wanted is None}
    assert all(text.rpartition(" ")[2].isdigit() and text.rpartition(" ")[0] in table.texts for text in numbered)


def test_no_word_recurs_in_an_id_where_no_token_may(id_generator, tokenizer):
    names, texts = catalogue(12)

    def share_of_repeats(size):
        table = make(id_generator, tokenizer, min_lengths=(11,), no_repeat_ngram_size=size).generate(
            id_generator[1], names, texts
        )
        words = [text.casefold().split() for text in table.texts]
        return sum(len(set(row)) < len(row) for row in words) / len(words)

    # The tokenizer spells words that it does not know, so tokens alone do not say which words recur.
    assert [share_of_repeats(size) > 0 for size in (0, 2)] == [True, False]


def test_ids_depend_on_neither_batch_size_nor_padding(id_generator, tokenizer):
    names, texts = catalogue(12)
    tables = [
        make(id_generator, tokenizer, min_lengths=(1,), **options).generate(id_generator[1], names, texts)
        for options in ({"batch_size": 4}, {"batch_size": 3, "length_buckets": (16,)})
    ]
    assert tables[0] == tables[1]


@pytest.mark.parametrize(
    ("overhead", "lengths"), [(0, {4, 8, 12, 16}), (1, {4, 16}), (1000, {16})], ids=["all", "one", "none"]
)
def test_a_bucket_is_in_use_where_it_spares_more_than_it_costs(id_generator, tokenizer, monkeypatch, overhead, lengths):
    found, encode = set(), generation_module.encode_batch

    def spy(graphdef, params, tokens, lengths, **options):
        found.add(tokens.shape[1])
        return encode(graphdef, params, tokens, lengths, **options)

    monkeypatch.setattr(generation_module, "encode_batch", spy)
    # Texts of four tokens are many; there is one each of lengths 7, 11 and 15.
    counts = [4] * 80 + [7, 11, 15]
    prompts = [[5 + number, *[4] * (count - 2), tokenizer.eos_id] for number, count in enumerate(counts)]
    generation = make(
        id_generator, tokenizer, batch_size=80, length_buckets=(4, 8, 12), bucket_overhead=overhead, num_groups=1
    )
    decoder = CandidateDecoder(generation, id_generator[1], prompts)
    decoder.candidates(np.arange(83), np.ones(83, int), np.ones(83))
    assert found == lengths


@pytest.mark.slow
def test_ids_depend_on_neither_the_sizes_of_small_batches_nor_what_is_kept(id_generator, tokenizer, encoded_texts):
    names, texts = catalogue(40)
    tables, encoded = [], []
    for options in ({}, {"encoded_budget_bytes": 0}, {"encoded_budget_bytes": 600}, {"batch_divisors": (1, 4)}):
        encoded_texts.clear()
        tables.append(make(id_generator, tokenizer, **options).generate(id_generator[1], names, texts))
        encoded.append(sum(map(len, encoded_texts)))
    assert all(table == tables[0] for table in tables[1:])
    distinct = len(set(texts))
    assert encoded[0] == encoded[3] == distinct, "each text is encoded once"
    assert distinct < encoded[2] < encoded[1]


def test_stages_of_one_length_share_a_batch_and_each_pair_is_decoded_once(id_generator, tokenizer, encoded_texts):
    texts = [TEXTS[0], TEXTS[0], TEXTS[1], TEXTS[4], TEXTS[0]]
    prompts = item_prompts(texts, texts, tokenizer, max_length=16)
    progress = []

    def make_decoder():
        generation = make(id_generator, tokenizer)
        return CandidateDecoder(generation, id_generator[1], prompts, lambda *seen: progress.append(seen))

    decoder, stages = make_decoder(), [(0, 1.0), (1, 3.0), (2, 2.0), (3, 3.0), (4, 1.0)]
    items, penalties = (np.asarray(column) for column in zip(*stages, strict=True))
    found = decoder.candidates(items, np.ones(5, int), penalties)
    assert progress == [(4, 4)], "one batch of two penalties for the first text and one each for two others"
    assert found[0] == found[4]
    assert [len(batch) for batch in encoded_texts] == [3]
    # Another item with the same text, later: nothing is decoded.
    assert decoder.candidates(items[1:2], np.ones(1, int), penalties[:1]) == found[:1]
    assert progress == [(4, 4)]
    # The encoder output of a text is still there for a new stage.
    decoder.candidates(items[2:3], np.ones(1, int), penalties[:1])
    assert progress[1:] == [(5, 5)] and len(encoded_texts) == 1
    alone = [
        make_decoder().candidates(items[place : place + 1], np.ones(1, int), penalties[place : place + 1])[0]
        for place in range(5)
    ]
    assert found == alone
    assert len({tuple(candidates) for candidates in found}) == 4, "the stages must differ"


def test_kept_encoder_outputs_stay_within_the_budget_and_retried_texts_come_first():
    output = jnp.zeros((4, 2), jnp.float32)
    kept = generation_module.EncodedTexts(3 * output.nbytes + 1)
    kept.begin(range(5))
    for text in range(5):
        kept.keep(text, output)
    assert sorted(kept.kept) == [0, 1, 2]
    kept.begin([1, 3, 4])
    kept.keep(3, output)
    assert len(kept.kept) == 3 and {1, 3} <= kept.kept.keys()
    kept.keep(4, output)
    assert sorted(kept.kept) == [1, 3, 4]
    kept.begin([1, 3, 4, 2])
    kept.keep(2, output)
    assert sorted(kept.kept) == [1, 3, 4], "texts that are needed do not push one another out"


@pytest.mark.parametrize(
    ("num_texts", "rows"),
    [(1, [1]), (4, [4]), (5, [4, 1]), (9, [9]), (20, [16, 4]), (32, [16, 16]), (33, [33]), (150, [64, 64, 16, 4, 2])],
)
def test_few_texts_go_into_small_batches(id_generator, tokenizer, num_texts, rows):
    generation = make(id_generator, tokenizer, batch_size=64, batch_divisors=(1, 4, 16))
    assert generation.batch_sizes == (4, 16, 64)
    decoder = CandidateDecoder(generation, id_generator[1], [[text] for text in range(num_texts)])
    requests = [generation_module._Request(text, 1, 1.0) for text in range(num_texts)]
    batches = [batch for batch, _ in decoder._batches(requests)]
    assert [request for batch in batches for request in batch] == requests
    assert [len(batch) for batch in batches] == rows
    padded = sum(len(decoder._fill(batch)) for batch in batches)
    assert padded < max(2 * num_texts, 5)


def test_batches_have_the_smallest_number_of_rows_that_holds_them(id_generator, tokenizer):
    assert make(id_generator, tokenizer, batch_size=6, batch_divisors=(1, 4, 16)).batch_sizes == (1, 2, 6)
    names, texts = catalogue(12)
    compilations = Compilations()
    generation = make(id_generator, tokenizer, min_lengths=(1,), penalties=(1.0,), batch_size=9, batch_divisors=(1, 3))
    generation.generate(id_generator[1], names, texts)
    assert compilations.count() == [2, 2], "three texts of four tokens and one of seven: batches of three will do"


def test_equal_texts_are_decoded_once_and_progress_is_told(id_generator, tokenizer):
    names, texts = catalogue(12)
    seen = []
    generation = make(id_generator, tokenizer, min_lengths=(1,))
    generation.generate(id_generator[1], names, texts, on_progress=lambda done, total: seen.append((done, total)))
    num_texts = len(set(texts))
    assert num_texts < 12
    assert [total for _, total in seen[:2]] == [num_texts] * 2
    assert seen[1][0] == num_texts
    assert seen[-1][0] == seen[-1][1]
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_a_blank_text_is_written_from_the_name_and_warned_about(id_generator, tokenizer, caplog):
    with caplog.at_level(logging.WARNING):
        table = make(id_generator, tokenizer, min_lengths=(1,)).generate(
            id_generator[1], ["red", "pen", "lamp"], ["red pen old", "  ", ""]
        )
    assert len(set(table.tokens)) == 3
    assert all(table.texts)
    assert caplog.text.count("2 of 3 texts are blank, the first is that of 'pen'") == 1


def test_prompts_are_cut_to_the_length_and_end_with_eos(tokenizer):
    prompts = item_prompts(["red pen old blue", " ", "ink"], ["A", "lamp", "B"], tokenizer, max_length=3)
    eos = tokenizer.eos_id
    assert prompts == [
        [*tokenizer.encode("red pen"), eos],
        [*tokenizer.encode("lamp"), eos],
        [*tokenizer.encode("ink"), eos],
    ]
    with pytest.raises(InputError, match="1 names and 2 texts"):
        item_prompts(["a", "b"], ["A"], tokenizer, max_length=3)


def test_without_a_fallback_items_that_cannot_be_made_unique_are_named(id_generator, tokenizer):
    generation = make(id_generator, tokenizer, min_lengths=(1,), penalties=(1.0,), fallback="error")
    with pytest.raises(InputError, match=r"no unique ID for \d+ of 40 items after 1 stages: 'A\d+'"):
        generation.generate(id_generator[1], [f"A{index}" for index in range(40)], ["red pen old"] * 40)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"fallback": "shrug"}, "fallback='shrug'"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_divisors": (2, 4)}, "batch_divisors=(2, 4): expected 1 as the first"),
        ({"encoded_budget_bytes": -1}, "encoded_budget_bytes=-1"),
        ({"penalties": ()}, "penalties"),
        ({"min_lengths": (11, 1)}, "min_lengths"),
        ({"max_text_length": 1}, "max_text_length=1"),
    ],
)
def test_settings_outside_their_range_are_refused(id_generator, tokenizer, options, named):
    with pytest.raises(InputError, match=re.escape(named)):
        make(id_generator, tokenizer, **options)


def test_fallback_words_are_those_of_the_first_field():
    fields = frozenset({"title", "brand", "plain"})

    def first_words(text):
        return generation_module._first_words(text, fields, without_repeats)

    assert first_words("title: Red pen, 0.5 mm; brand: Acme") == "Red pen 0 5 mm"
    assert first_words("plain: text") == "text"
    assert first_words("one two two three four five six seven eight") == "one two three four five six seven eight"
    assert first_words("a long text of more words than an ID has") == "a long text of more words than an"
    assert first_words("") == ""
    # A title may begin like a field, hold a semicolon, or be missing.
    assert first_words("Size: 12 inch pan") == "Size 12 inch pan"
    assert first_words("title: Ink; pen; brand: Acme") == "Ink pen"
    assert first_words("title: nan; brand: Acme") == "Acme"
