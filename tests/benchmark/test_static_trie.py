"""STATIC's trie against ours: the same candidates at every level."""

import jax.numpy as jnp
import numpy as np
import pytest

from idgenrec_jax.benchmark.static_trie import static_candidates, static_trie
from idgenrec_jax.decoding.beam import best_candidates
from idgenrec_jax.decoding.trie import build_trie

VOCAB_SIZE, EOS = 40, 1


@pytest.mark.parametrize("seed", [0, 1])
def test_candidates_are_those_of_our_trie_at_every_level(seed):
    rng = np.random.default_rng(seed)
    sequences = {tuple(rng.integers(2, VOCAB_SIZE, rng.integers(1, 6)).tolist()) for _ in range(300)}
    trie = build_trie(sorted(sequences), vocab_size=VOCAB_SIZE, eos_token_id=EOS, layout="csr")
    static = static_trie(trie)
    assert static.nbytes > trie.nbytes
    states, scores = jnp.zeros((2, 4), jnp.int32), jnp.full((2, 4), -jnp.inf).at[:, 0].set(0.0)
    compared = 0
    for level in range(trie.depth):
        logits = jnp.asarray(rng.normal(size=(2, 4, VOCAB_SIZE)), jnp.float32)
        expected = best_candidates(trie, logits, states, scores, 8)
        found = static_candidates(static, logits, states, scores, level, 8)
        real = np.asarray(expected.scores) > -np.inf
        compared += bool(real.any())
        np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-6)
        for values, others in zip(found[1:], expected[1:], strict=True):
            np.testing.assert_array_equal(np.asarray(values)[real], np.asarray(others)[real])
        # Items are finished; the best of the others go on.
        runs = real & (np.asarray(expected.states) < trie.num_nodes)
        order = np.argsort(~runs, axis=1, kind="stable")[:, :4]
        scores, states = (
            jnp.take_along_axis(jnp.where(runs, values, rest), order, axis=1)
            for values, rest in ((expected.scores, -jnp.inf), (expected.states, 0))
        )
    assert compared > 3
