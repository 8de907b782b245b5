"""Diverse beam search against transformers' group beam search (golden arrays), and its promises one by one."""

from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import Array

from idgenrec_jax.decoding.beam import greedy_search
from idgenrec_jax.decoding.diverse import _ban_repeated, diverse_beam_search
from idgenrec_jax.errors import InputError
from tests.decoding.tiny_t5 import build_model, start

GOLDEN = Path(__file__).parents[1] / "golden" / "diverse.npz"
VOCAB_SIZE, EOS, PAD = 48, 1, 0


class NoCache(NamedTuple):
    """A model without memory: the logits after each token."""

    table: Array

    def extend(self, written, position, beams):
        return self


def table_step(tokens, position, cache):
    return cache.table[tokens] * (1 + 0.1 * position), None


@partial(jax.jit, static_argnames=("graphdef", "num_beams", "num_groups", "max_length", "no_repeat_ngram_size"))
def search(
    params, tokens, mask, penalty, min_length, length_penalty, *,
    graphdef, num_beams, num_groups, max_length, no_repeat_ngram_size,
):
    step, cache = start(nnx.merge(graphdef, params), tokens, mask, num_beams, max_length - 2, num_beams // num_groups)
    return diverse_beam_search(
        step,
        cache,
        batch_size=tokens.shape[0],
        num_beams=num_beams,
        num_groups=num_groups,
        diversity_penalty=penalty,
        min_length=min_length,
        max_length=max_length,
        vocab_size=VOCAB_SIZE,
        eos_token_id=EOS,
        pad_token_id=PAD,
        start_token_id=PAD,
        length_penalty=length_penalty,
        no_repeat_ngram_size=no_repeat_ngram_size,
    )


@pytest.mark.slow
@pytest.mark.parametrize(("num_beams", "num_groups"), [(10, 10), (6, 3)])
def test_golden_cases_are_reproduced(num_beams, num_groups, tmp_path):
    with np.load(GOLDEN) as golden:
        arrays = dict(golden)
    tensors = {name.removeprefix("tensor/"): value for name, value in arrays.items() if name.startswith("tensor/")}
    graphdef, params = nnx.split(build_model(tensors, tmp_path), nnx.Param)
    names = [name.removeprefix("found/") for name in arrays if name.startswith(f"found/{num_beams}/{num_groups}/")]
    for name in names:
        _, _, length_penalty, min_length, max_length, penalty, size = (float(part) for part in name.split("/"))
        result = search(
            params, jnp.asarray(arrays["tokens"]), jnp.asarray(arrays["mask"]), jnp.float32(penalty),
            jnp.int32(min_length), jnp.float32(length_penalty), graphdef=graphdef, num_beams=num_beams,
            num_groups=num_groups, max_length=int(max_length), no_repeat_ngram_size=int(size),
        )
        np.testing.assert_array_equal(np.asarray(result.tokens), arrays[f"found/{name}"], err_msg=name)
        np.testing.assert_allclose(np.asarray(result.scores), arrays[f"scores/{name}"], atol=1e-4, rtol=0, err_msg=name)
    assert len(names) == {10: 16, 6: 26}[num_beams]
    assert {name.rpartition("/")[2] for name in names} == {10: {"0", "1", "3"}, 6: {"0", "2"}}[num_beams]
    # The penalty and the minimum length are arguments, not constants: one program for each maximum length.
    assert {int(name.split("/")[4]) for name in names} == {11, 21, 8}


def test_penalty_and_minimum_length_do_not_recompile():
    traces = []

    @jax.jit
    def run(cache, penalty, min_length):
        traces.append(penalty)
        return diverse_beam_search(
            table_step, cache, batch_size=1, num_beams=4, num_groups=4, diversity_penalty=penalty,
            min_length=min_length, max_length=6, vocab_size=20, eos_token_id=EOS, pad_token_id=PAD, start_token_id=PAD,
        )

    cache = NoCache(jax.random.normal(jax.random.key(0), (20, 20)))
    found = [np.asarray(run(cache, float(penalty), length).tokens) for penalty, length in ((0, 1), (1, 1), (9, 5))]
    assert len(traces) == 1
    assert not np.array_equal(found[0], found[2])


@pytest.mark.parametrize(("num_beams", "num_groups"), [(6, 6), (6, 3)])
def test_each_row_of_a_batch_has_its_own_penalty_and_minimum_length(num_beams, num_groups):
    cache = NoCache(2 * jax.random.normal(jax.random.key(4), (30, 30)).at[:, EOS].add(1.5))
    penalties, min_lengths = [0.0, 0.5, 1.0, 3.0, 9.0, 1.0], [1, 1, 6, 3, 1, 9]

    @partial(jax.jit, static_argnames="peel_first")
    def run(cache, penalty, min_length, peel_first):
        return diverse_beam_search(
            table_step, cache, batch_size=6, num_beams=num_beams, num_groups=num_groups, diversity_penalty=penalty,
            min_length=min_length, max_length=9, vocab_size=30, eos_token_id=EOS, pad_token_id=PAD, start_token_id=PAD,
            peel_first=peel_first,
        )

    mixed = run(cache, jnp.float32(penalties), jnp.int32(min_lengths), True)
    for row, (penalty, min_length) in enumerate(zip(penalties, min_lengths, strict=True)):
        alone = run(cache, jnp.float32(penalty), jnp.int32(min_length), False)
        np.testing.assert_array_equal(mixed.tokens[row], alone.tokens[row])
        np.testing.assert_allclose(mixed.scores[row], alone.scores[row], rtol=1e-6)
    assert len({np.asarray(tokens).tobytes() for tokens in mixed.tokens}) >= 4, "the settings must matter"
    # One of the two may be shared by all rows.
    shared = run(cache, jnp.float32(1.0), jnp.int32(min_lengths), True)
    np.testing.assert_array_equal(shared.tokens[2], mixed.tokens[2])
    np.testing.assert_array_equal(shared.tokens[5], mixed.tokens[5])


@pytest.mark.parametrize(("num_beams", "num_groups"), [(6, 6), (6, 3)])
def test_sequences_end_with_eos_or_fill_the_length_and_respect_the_minimum(num_beams, num_groups):
    table = 2 * jax.random.normal(jax.random.key(3), (30, 30)).at[:, EOS].add(1.5)
    @jax.jit
    def run(cache, min_length):
        return diverse_beam_search(
            table_step, cache, batch_size=3, num_beams=num_beams, num_groups=num_groups, diversity_penalty=2.0,
            min_length=min_length, max_length=9, vocab_size=30, eos_token_id=EOS, pad_token_id=PAD, start_token_id=PAD,
        )

    for min_length in (1, 4, 7):
        result = run(NoCache(table), min_length)
        tokens, scores = np.asarray(result.tokens), np.asarray(result.scores)
        assert tokens.shape == (3, num_beams, 8)
        assert (np.diff(scores, axis=1) <= 0).all() and np.isfinite(scores).all()
        is_eos = tokens == EOS
        assert is_eos.any(), "the case must hold finished sequences"
        ends = np.where(is_eos.any(-1), is_eos.argmax(-1), 8)
        # The tokens before EOS, and the start token, are at least min_length.
        assert (ends + 1 >= min_length).all()
        assert (tokens[np.arange(8) > ends[..., None]] == PAD).all()
        assert is_eos.sum(-1).max() == 1


def test_without_penalty_every_group_of_one_is_the_greedy_sequence():
    cache = NoCache(3 * jax.random.normal(jax.random.key(1), (40, 40)).at[:, EOS].add(-9))
    ids = {"eos_token_id": EOS, "pad_token_id": PAD, "start_token_id": PAD}
    greedy = greedy_search(table_step, cache, batch_size=2, max_length=7, **ids)[:, 0]
    result = diverse_beam_search(
        table_step, cache, batch_size=2, num_beams=3, num_groups=3, diversity_penalty=0.0, min_length=0, max_length=7,
        vocab_size=40, **ids,
    )
    np.testing.assert_array_equal(np.asarray(result.tokens), np.repeat(np.asarray(greedy)[:, None], 3, axis=1))


def test_a_large_penalty_keeps_groups_apart_at_every_position():
    cache = NoCache(jax.random.normal(jax.random.key(2), (40, 40)).at[:, EOS].add(-50))
    result = diverse_beam_search(
        table_step, cache, batch_size=2, num_beams=5, num_groups=5, diversity_penalty=100.0, min_length=0,
        max_length=8, vocab_size=40, eos_token_id=EOS, pad_token_id=PAD, start_token_id=PAD,
    )
    for row in np.asarray(result.tokens):
        for position in range(7):
            assert len(set(row[:, position])) == 5


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_what_would_repeat_tokens_is_banned_and_nothing_else(size):
    """Against transformers' rule in plain Python: what followed the last size - 1 tokens where they stood before."""
    rng = np.random.default_rng(size)
    vocab, length, start_token = 5, 12, 0
    tokens = rng.integers(0, vocab, (40, 3, length)).astype(np.int32)
    logits = rng.normal(size=(40, 3, vocab)).astype(np.float32)
    ban = jax.jit(partial(_ban_repeated, start_token_id=start_token, size=size))
    num_banned = 0
    for position in range(length):
        found = np.asarray(ban(jnp.asarray(logits), jnp.asarray(tokens), jnp.int32(position)))
        expected = logits.copy()
        for row in np.ndindex(tokens.shape[:2]):
            written = [start_token, *tokens[row][:position].tolist()]
            grams = [tuple(written[first : first + size]) for first in range(len(written) - size + 1)]
            last = tuple(written[len(written) - size + 1 :])
            expected[(*row, [gram[-1] for gram in grams if len(written) >= size and gram[:-1] == last])] = -np.inf
        np.testing.assert_array_equal(found, expected)
        num_banned += np.isinf(expected).sum()
    assert num_banned >= 40


def test_no_beam_repeats_what_it_may_not():
    # From each token one other token is far likelier than the rest: without a ban a beam goes in a circle.
    table = jnp.roll(6 * jnp.eye(20), 1, axis=1).at[4].set(0).at[4, 2].set(6) - 8 * jax.nn.one_hot(EOS, 20)
    cache = NoCache(table + 0.1 * jax.random.normal(jax.random.key(5), (20, 20)))

    @partial(jax.jit, static_argnames="size")
    def run(cache, size):
        return diverse_beam_search(
            table_step, cache, batch_size=2, num_beams=6, num_groups=3, diversity_penalty=0.5,
            min_length=12, max_length=12, vocab_size=20, eos_token_id=EOS, pad_token_id=PAD, start_token_id=PAD,
            no_repeat_ngram_size=size,
        )

    def repeats(tokens, size):
        tokens = [PAD, *tokens]
        grams = [tuple(tokens[first : first + size]) for first in range(len(tokens) - size + 1)]
        return len(set(grams)) < len(grams)

    sequences = {size: np.asarray(run(cache, size).tokens).reshape(-1, 11).tolist() for size in (1, 2)}
    assert not any(repeats(tokens, 1) for tokens in sequences[1])
    assert not any(repeats(tokens, 2) for tokens in sequences[2])
    assert any(repeats(tokens, 1) for tokens in sequences[2])


def test_a_negative_size_of_what_may_not_repeat_is_refused():
    with pytest.raises(InputError, match="no_repeat_ngram_size: found -1, expected 0 or more"):
        diverse_beam_search(
            table_step, NoCache(jnp.zeros((4, 4))), batch_size=1, num_beams=2, num_groups=2, diversity_penalty=1.0,
            min_length=0, max_length=4, vocab_size=4, eos_token_id=EOS, pad_token_id=PAD, start_token_id=PAD,
            no_repeat_ngram_size=-1,
        )


def test_beams_that_groups_cannot_share_are_refused():
    with pytest.raises(InputError, match="num_groups: found 4 with num_beams 6"):
        diverse_beam_search(
            table_step, NoCache(jnp.zeros((4, 4))), batch_size=1, num_beams=6, num_groups=4, diversity_penalty=1.0,
            min_length=0, max_length=4, vocab_size=4, eos_token_id=EOS, pad_token_id=PAD, start_token_id=PAD,
        )
