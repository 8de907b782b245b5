"""The trie of STATIC (arXiv 2602.22647) beside ours: dense rows for the first levels, compressed rows below them.

Written from the paper's description for comparison only. Where ours selects among the children of the beams, STATIC
makes a mask over the whole vocabulary in each step and selects among its tokens. Below the dense levels a state's
children are read as a slice as long as the largest family of that level.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt32

from idgenrec_jax.decoding.beam import Candidates
from idgenrec_jax.decoding.top_k import blockwise_top_k
from idgenrec_jax.decoding.trie import Trie

DENSE_LEVELS = 2
_WORD_BITS = 32


@partial(jax.tree_util.register_dataclass, data_fields=["trie", "rows"], meta_fields=["fanouts"])
@dataclass(frozen=True)
class StaticTrie:
    """A csr trie with one bit for each (node, token) of the first levels, and the largest family of every level."""

    trie: Trie
    rows: UInt32[Array, "dense_nodes words"]
    fanouts: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """The bytes that all arrays occupy on the device."""
        return self.trie.nbytes + self.rows.nbytes

    def allowed_tokens(self, states: Int[Array, "batch beams"], level: int) -> Bool[Array, "batch beams vocab"]:
        """Return which tokens may follow states of `level`."""
        vocab = self.trie.vocab_size
        if level < DENSE_LEVELS:
            words = self.rows[states]
            bits = (words[..., None] >> jnp.arange(_WORD_BITS, dtype=jnp.uint32)) & 1
            return bits.astype(bool).reshape(*states.shape, -1)[..., :vocab]
        edges, is_child = self.trie.child_edges(states, self.fanouts[level])
        batch, beam = (indices[..., None] for indices in jnp.indices(states.shape))
        mask = jnp.zeros((*states.shape, vocab), bool)
        return mask.at[batch, beam, jnp.where(is_child, self.trie.edge_tokens[edges], vocab)].set(True, mode="drop")

    def next_states(
        self, states: Int[Array, "batch chosen"], tokens: Int[Array, "batch chosen"], level: int
    ) -> Int[Array, "batch chosen"]:
        """Return the state that each token leads to from states of `level`, -1 where it is not allowed."""
        edges, is_child = self.trie.child_edges(states, self.fanouts[level])
        is_next = is_child & (self.trie.edge_tokens[edges] == tokens[..., None])
        return jnp.where(is_next, self.trie.edge_states[edges], -1).max(-1)


def static_trie(trie: Trie) -> StaticTrie:
    """Return STATIC's arrays for a trie of layout csr."""
    offsets, states = np.asarray(trie.edge_offsets), np.asarray(trie.edge_states)
    fanouts, first, end, dense_nodes = [], 0, 1, 0
    # Nodes are numbered breadth first, so that every level is a range of nodes.
    for level in range(trie.depth):
        fanouts.append(int(np.diff(offsets[first : end + 1]).max()))
        dense_nodes = end if level < DENSE_LEVELS else dense_nodes
        children = states[offsets[first] : offsets[end]]
        first, end = end, end + int((children < trie.num_nodes).sum())
    parents = np.repeat(np.arange(dense_nodes), np.diff(offsets[: dense_nodes + 1]))
    tokens = np.asarray(trie.edge_tokens)[: len(parents)]
    rows = np.zeros((dense_nodes, -(-trie.vocab_size // _WORD_BITS)), np.uint32)
    bits = np.left_shift(np.uint32(1), (tokens % _WORD_BITS).astype(np.uint32))
    np.bitwise_or.at(rows, (parents, tokens // _WORD_BITS), bits)
    return StaticTrie(trie, jnp.asarray(rows), tuple(fanouts))


def static_candidates(
    static: StaticTrie,
    logits: Float[Array, "batch beams vocab"],
    states: Int[Array, "batch beams"],
    scores: Float[Array, "batch beams"],
    level: int,
    num_candidates: int,
) -> Candidates:
    """Return the best continuations of the beams, which stand at `level`; the same as `best_candidates` finds."""
    totals = logits - jax.nn.logsumexp(logits, axis=-1, keepdims=True) + scores[..., None]
    # A beam without a continuation stands at the root, whatever the level.
    allowed = static.allowed_tokens(states, level) & (scores > -jnp.inf)[..., None]
    totals = jnp.where(allowed, totals, -jnp.inf)
    best, indices = blockwise_top_k(totals.reshape(len(totals), -1), num_candidates)
    beams, tokens = indices // static.trie.vocab_size, indices % static.trie.vocab_size
    parents = jnp.take_along_axis(states, beams, axis=1)
    return Candidates(best, beams, tokens, static.next_states(parents, tokens, level))
