import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from idgenrec_jax.decoding.diverse import diverse_beam_search
from idgenrec_jax.errors import InputError
from idgenrec_jax.ids import generation as generation_module
from idgenrec_jax.ids.generation import IdGeneration, item_prompts
from idgenrec_jax.ids.table import clean_to_words
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
def generator(tokenizer):
    """An untrained generator, at weights large enough to make it write different things about different texts."""
    config = T5Config(
        vocab_size=tokenizer.size + 5, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_decoder_layers=1, num_heads=2,
        eos_token_id=tokenizer.eos_id, pad_token_id=tokenizer.pad_id, decoder_start_token_id=tokenizer.pad_id,
        initializer_factor=3.0, tie_word_embeddings=False,
    )  # fmt: skip
    return nnx.split(T5(config, rngs=nnx.Rngs(1)), nnx.Param)


def make(generator, tokenizer, **options):
    options = {
        "num_groups": NUM_GROUPS, "penalties": PENALTIES, "min_lengths": MIN_LENGTHS, "batch_size": 4,
        "max_text_length": 16, "length_buckets": (4, 8), "fallback": "suffix",
    } | options  # fmt: skip
    return IdGeneration(generator[0], tokenizer, **options)


@functools.partial(jax.jit, static_argnames=("graphdef", "max_length"))
def decode_alone(graphdef, params, tokens, min_length, penalty, *, max_length):
    """One text [1, length] through the model by itself, without padding."""
    model = nnx.merge(graphdef, params)
    mask = jnp.ones(tokens.shape, bool)
    cache = model.start_decoding(model.encode(tokens, mask), mask, num_beams=NUM_GROUPS, max_length=max_length)

    def step(beam_tokens, position, cache):
        hidden, cache = model.decode_step(beam_tokens, position, cache)
        return model.logits(hidden), cache

    config = model.config
    return diverse_beam_search(
        step, cache, batch_size=1, num_beams=NUM_GROUPS, num_groups=NUM_GROUPS, diversity_penalty=penalty,
        min_length=min_length, max_length=max_length, vocab_size=config.vocab_size, eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id, start_token_id=config.decoder_start_token_id,
    ).tokens[0]  # fmt: skip


def one_after_the_other(generator, tokenizer, texts):
    """Algorithm 1 as published: (ID tokens, or None where all stages fail) for one item after the other."""
    cache, taken, ids = {}, set(), []
    for text in texts:
        ids.append(None)
        for stage in [(length, penalty) for length in MIN_LENGTHS for penalty in PENALTIES]:
            if (text, stage) not in cache:
                source = jnp.asarray([[*tokenizer.encode(text), tokenizer.eos_id]], jnp.int32)
                decoded = decode_alone(*generator, source, *stage, max_length=stage[0] + 10)
                cache[text, stage] = tokenizer.decode_batch(np.asarray(decoded).tolist())
            candidates = [tuple(tokenizer.encode(clean_to_words(raw))) for raw in cache[text, stage]]
            free = [tokens for tokens in candidates if tokens and tokens not in taken]
            if free:
                ids[-1] = free[0]
                taken.add(free[0])
                break
    return ids


@pytest.mark.slow
def test_batches_give_what_one_item_after_the_other_gives(generator, tokenizer):
    names, texts = catalogue(45)
    expected = one_after_the_other(generator, tokenizer, texts)
    before = generation_module._decode_batch._cache_size()
    table = make(generator, tokenizer).generate(generator[1], names, texts)
    assert generation_module._decode_batch._cache_size() - before == 4, "two buckets times two lengths"
    assert table.items == tuple(names)
    found = [tokens for tokens, wanted in zip(table.tokens, expected, strict=True) if wanted is not None]
    assert found == [wanted for wanted in expected if wanted is not None]
    assert 20 < len(found) < 45
    assert max(map(len, found)) > 15, "the second minimum length is in use"
    # What no stage makes unique has the words of its first candidate and a number.
    numbered = {text for text, wanted in zip(table.texts, expected, strict=True) if wanted is None}
    assert all(text.rpartition(" ")[2].isdigit() and text.rpartition(" ")[0] in table.texts for text in numbered)


def test_ids_depend_on_neither_batch_size_nor_padding(generator, tokenizer):
    names, texts = catalogue(12)
    tables = [
        make(generator, tokenizer, min_lengths=(1,), **options).generate(generator[1], names, texts)
        for options in ({"batch_size": 4}, {"batch_size": 3, "length_buckets": (16,)})
    ]
    assert tables[0] == tables[1]


def test_equal_texts_are_decoded_once_and_progress_is_told(generator, tokenizer):
    names, texts = catalogue(12)
    seen = []
    generation = make(generator, tokenizer, min_lengths=(1,))
    generation.generate(generator[1], names, texts, on_progress=lambda done, total: seen.append((done, total)))
    num_texts = len(set(texts))
    assert num_texts < 12
    assert [total for _, total in seen[:2]] == [num_texts] * 2
    assert seen[1][0] == num_texts
    assert seen[-1][0] == seen[-1][1]
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_a_blank_text_is_written_from_the_name_and_warned_about(generator, tokenizer, caplog):
    with caplog.at_level(logging.WARNING):
        table = make(generator, tokenizer, min_lengths=(1,)).generate(
            generator[1], ["red", "pen", "lamp"], ["red pen old", "  ", ""]
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


def test_without_a_fallback_items_that_cannot_be_made_unique_are_named(generator, tokenizer):
    generation = make(generator, tokenizer, min_lengths=(1,), penalties=(1.0,), fallback="error")
    with pytest.raises(InputError, match=r"no unique ID for \d+ of 40 items after 1 stages: 'A\d+'"):
        generation.generate(generator[1], [f"A{index}" for index in range(40)], ["red pen old"] * 40)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"fallback": "shrug"}, "fallback='shrug'"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"penalties": ()}, "penalties"),
        ({"min_lengths": (11, 1)}, "min_lengths"),
        ({"max_text_length": 1}, "max_text_length=1"),
    ],
)
def test_settings_outside_their_range_are_refused(generator, tokenizer, options, named):
    with pytest.raises(InputError, match=named):
        make(generator, tokenizer, **options)


def test_fallback_words_are_those_of_the_first_field():
    first_words = generation_module._first_words
    assert first_words("title: Red pen, 0.5 mm; brand: Acme") == "Red pen 0 5 mm"
    assert first_words("plain: text") == "text"
    assert first_words("a long text of more words than an ID has") == "a long text of more words than an"
    assert first_words("") == ""
