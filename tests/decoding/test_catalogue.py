"""Exact scores of all items: against scoring each by itself, and as probabilities."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from test_trie import random_sequences

from idgenrec_jax.decoding import catalogue
from idgenrec_jax.decoding.catalogue import score_items
from idgenrec_jax.decoding.catalogue_plan import catalogue_plan
from idgenrec_jax.models import row_parts
from idgenrec_jax.models.t5 import T5, T5Config, shift_right

VOCAB_SIZE = 96
SIZES = {"vocab_size": VOCAB_SIZE, "d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 1, "num_decoder_layers": 2}
CONFIG = T5Config(num_heads=2, **SIZES)
GRAPHDEF, PARAMS = nnx.split(T5(CONFIG, rngs=nnx.Rngs(0)), nnx.Param)
HALF_PRECISION = nnx.split(
    T5(replace(CONFIG, compute_dtype="bfloat16"), rngs=nnx.Rngs(0)), nnx.Param
)[0]
PROMPTS = jnp.asarray(np.random.default_rng(0).integers(2, VOCAB_SIZE, (3, 6)))
MASKS = {"right": np.arange(6) < [[6], [4], [1]], "left": np.arange(6) >= [[0], [3], [5]]}


def make_plan(sequences, **settings):
    return catalogue_plan(sequences, vocab_size=VOCAB_SIZE, eos_token_id=1, **settings)


@partial(jax.jit, static_argnames="graphdef")
def scores_of_plan(params, mask, plan, length_penalty=0.0, graphdef=GRAPHDEF):
    model = nnx.merge(graphdef, params)
    return score_items(model, model.encode(PROMPTS, mask), mask, plan, length_penalty)


@jax.jit
def logits_alone(params, mask, tokens):
    """The logits of every token of each item, every item decoded by itself: [prompts, items, length, vocab]."""
    model = nnx.merge(GRAPHDEF, params)
    encoded = model.encode(PROMPTS, mask)
    inputs = shift_right(tokens, 0)

    def of_prompt(row):
        repeated = [jnp.repeat(array[row][None], len(tokens), axis=0) for array in (encoded, mask)]
        return model.decode(inputs, *repeated)

    hidden = jnp.stack([of_prompt(row) for row in range(len(PROMPTS))])
    return jax.vmap(model.logits)(hidden)


def scored_alone(sequences, mask, *, over_catalogue, length_penalty=0.0):
    """Log-probabilities [prompts, items], each item decoded by itself."""
    longest = max(map(len, sequences)) + 1
    tokens = np.zeros((len(sequences), longest), np.int32)
    for item, sequence in enumerate(sequences):
        tokens[item, : len(sequence) + 1] = [*sequence, 1]
    logits = np.asarray(logits_alone(PARAMS, mask, tokens), np.float64)
    scores = np.zeros(logits.shape[:2])
    followers = {}
    for sequence in sequences:
        for length, token in enumerate([*sequence, 1]):
            followers.setdefault(tuple(sequence[:length]), set()).add(token)
    for item, sequence in enumerate(sequences):
        for length, token in enumerate([*sequence, 1]):
            allowed = sorted(followers[tuple(sequence[:length])]) if over_catalogue else slice(None)
            step = logits[:, item, length]
            scores[:, item] += step[:, token] - np.log(np.exp(step[:, allowed]).sum(axis=-1))
        scores[:, item] /= (len(sequence) + 1) ** length_penalty
    return scores


@pytest.mark.parametrize("over_catalogue", [True, False])
@pytest.mark.parametrize("side", MASKS)
def test_scores_are_those_of_items_decoded_by_themselves(over_catalogue, side):
    sequences = random_sequences(np.random.default_rng(1), 150, 7, 12)
    expected = scored_alone(sequences, MASKS[side], over_catalogue=over_catalogue)
    assert expected.std(axis=0).min() > 1e-3 and expected.std(axis=1).min() > 0.5, "prompts and items must differ"
    for block_length in (32, 128):
        plan = make_plan(sequences, over_catalogue=over_catalogue, block_length=block_length)
        found = scores_of_plan(PARAMS, MASKS[side], plan)
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)
    if not over_catalogue:
        expected = scored_alone(sequences, MASKS[side], over_catalogue=False, length_penalty=1.5)
        np.testing.assert_allclose(scores_of_plan(PARAMS, MASKS[side], plan, 1.5), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("count", [1, 2, 17, 300, 2000])
def test_probabilities_of_all_items_sum_to_one(count):
    sequences = random_sequences(np.random.default_rng(count), count, 9, VOCAB_SIZE)
    plan = make_plan(sequences, over_catalogue=True)
    for graphdef in (GRAPHDEF, HALF_PRECISION) if count == 300 else (GRAPHDEF,):
        scores = np.asarray(scores_of_plan(PARAMS, MASKS["right"], plan, graphdef=graphdef), np.float64)
        assert scores.shape == (3, count)
        np.testing.assert_allclose(np.exp(scores).sum(axis=1), 1.0, atol=1e-5, rtol=0)


def test_users_and_logits_in_parts_and_wide_families_change_nothing(monkeypatch):
    # 90 children at the root, 40 of them with 80 children each: more than the narrowest case has room for.
    sequences = [(first,) for first in range(2, 92)] + [
        (first, second) for first in range(2, 42) for second in range(2, 81)
    ]
    mask = jnp.asarray(MASKS["right"])
    whole = make_plan(sequences, over_catalogue=True, block_length=256)
    expected = scores_of_plan(PARAMS, mask, whole)
    plan = make_plan(sequences, over_catalogue=True, block_length=32)
    assert len(plan.widths) > 1 and int(plan.arrays.num_blocks) > 1
    np.testing.assert_allclose(scores_of_plan(PARAMS, mask, plan), expected, atol=1e-5, rtol=0)

    sequences = random_sequences(np.random.default_rng(5), 40, 5, 12)
    plan = make_plan(sequences, over_catalogue=False)
    expected = scores_of_plan(PARAMS, mask, plan)
    monkeypatch.setattr(row_parts, "PART_BYTES", 1)
    monkeypatch.setattr(catalogue, "CPU_LOGITS_BYTES", 4 * VOCAB_SIZE * 4)
    model = nnx.merge(GRAPHDEF, PARAMS)
    program = jax.make_jaxpr(lambda plan: score_items(model, model.encode(PROMPTS, mask), mask, plan))(plan)
    # A prompt at a time, four rows of logits at a time.
    assert f"f32[1,4,{VOCAB_SIZE}]" in str(program)
    found = score_items(model, model.encode(PROMPTS, mask), mask, plan)
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)


def test_catalogues_of_one_shape_share_a_program():
    plans = [
        make_plan(random_sequences(np.random.default_rng(seed), 300, 7, VOCAB_SIZE), over_catalogue=True)
        for seed in (3, 5, 6)
    ]
    assert len({int(plan.arrays.first_edges.max()) for plan in plans}) == 3, "the catalogues must differ"
    scores_of_plan.clear_cache()
    sums = [np.exp(scores_of_plan(PARAMS, MASKS["right"], plan)).sum(axis=1) for plan in plans]
    np.testing.assert_allclose(sums, 1.0, atol=1e-5)
    assert scores_of_plan._cache_size() == 1
