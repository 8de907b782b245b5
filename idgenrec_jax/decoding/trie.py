"""The set of valid IDs as device arrays: a prefix tree whose final states are the items.

Nodes are numbered breadth first (node 0 is the root), EOS is an ordinary edge, and the last edge of item i leads to
state num_nodes + i: the state a search ends in *is* the item. Edges are stored in the order (parent, token), so that
the children of a node are contiguous. A *choice* is a node with several children.

A search has logits in columns. For the softmax over the vocabulary these are its tokens. For the catalogue softmax they
are the tokens that follow a choice anywhere, and the tree ends at each item's last choice. Two layouts answer the same
questions:

- `dense`: the mask tensor [choices, columns], one bit each. It is applied over all columns.
- `csr`: a node's children are gathered, at most `fanout` of them. Memory and work grow with the number of edges.

Array sizes are rounded up so that the tables of successive rounds share a compiled program.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Int, UInt32

from idgenrec_jax.data.choices import WORD_BITS, bit_mask
from idgenrec_jax.data.prefix_tree import PrefixTree, prefix_tree
from idgenrec_jax.errors import InputError

LAYOUTS = ("auto", "dense", "csr")
DENSE_LIMIT_BYTES = 256 * 2**20
"""Bytes of a dense mask above which it is refused."""
AUTO_LIMIT_BYTES = 16 * 2**20
"""Bytes of a dense mask over the catalogue up to which "auto" chooses it: 70,000 items like those of Beauty.

On two CPU cores a step of 32 users and 20 beams then selects in 10 ms, with lists in 2, where a T5-small decodes for
300.
"""
# Numbers of children gathered at once; a step uses the smallest that holds the largest family of its beams.
WIDTHS = tuple(8**power for power in range(1, 9))
_STATIC_FIELDS = ("layout", "vocab_size", "widths")


@dataclass(frozen=True)
class Trie:
    """A prefix tree as a pytree of device arrays, usable as an argument of a jitted function.

    `counts` holds (number of nodes, items, levels); `edge_offsets[n]` is the first edge of node n; `edge_tokens` the
    token of each edge, `edge_states` the state it leads to.

    Over the catalogue, `tokens` holds the token of each column, ascending, then padding that no choice allows.
    `edge_columns` is the column of each edge, 0 where it is its node's only one. Both are None over the vocabulary.

    In the dense layout bit `column % 32` of `mask[row, column // 32]` says whether the column is allowed; `mask_rows`
    is the row of each node. Static: `layout`, `vocab_size` and `widths`, the prefix of WIDTHS whose last holds the
    children of every node (csr only).
    """

    counts: Int[Array, "3"]
    edge_offsets: Int[Array, " nodes_plus_one"]
    edge_states: Int[Array, " edges"]
    edge_tokens: Int[Array, " edges"]
    edge_columns: Int[Array, " edges"] | None
    tokens: Int[Array, " columns"] | None
    mask: UInt32[Array, "rows words"] | None
    mask_rows: Int[Array, " nodes"] | None
    layout: str
    vocab_size: int
    widths: tuple[int, ...]

    @property
    def num_nodes(self) -> int:
        """The number of inner nodes, root included; outside jit only (inside, `counts[0]`)."""
        return int(jax.device_get(self.counts)[0])

    @property
    def num_items(self) -> int:
        """The number of sequences; outside jit only (inside, `counts[1]`)."""
        return int(jax.device_get(self.counts)[1])

    @property
    def depth(self) -> int:
        """The most edges from the root to an item; outside jit only (inside, `counts[2]`)."""
        return int(jax.device_get(self.counts)[2])

    @property
    def nbytes(self) -> int:
        """The bytes that all arrays occupy on the device, padding included."""
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self))

    @property
    def over_catalogue(self) -> bool:
        """Whether probabilities are normalised over the children of a node."""
        return self.tokens is not None

    @property
    def num_columns(self) -> int:
        """How many logits a search has for each beam, padding included."""
        return self.vocab_size if self.tokens is None else self.tokens.shape[0]

    @property
    def columns(self) -> Int[Array, " edges"]:
        """The column of each edge."""
        return self.edge_tokens if self.edge_columns is None else self.edge_columns

    def num_children(self, states: Int[Array, "*batch"]) -> Int[Array, "*batch"]:
        """Returns how many tokens may follow each state; none may follow an item."""
        start, end = self._edge_range(states)
        return end - start

    def child_edges(
        self, states: Int[Array, "*batch"], width: int
    ) -> tuple[Int[Array, "*batch width"], Bool[Array, "*batch width"]]:
        """Returns the edges to the first `width` children of each state, columns ascending, and which there are.

        Items (final states) have no children. Edge 0 stands where there is none.
        """
        start, end = self._edge_range(states)
        edges = start[..., None] + jnp.arange(width, dtype=jnp.int32)
        is_child = edges < end[..., None]
        return jnp.where(is_child, edges, 0), is_child

    def allowed_columns(self, states: Int[Array, "*batch"]) -> Bool[Array, "*batch columns"]:
        """Returns which columns may follow each state; none may follow an item."""
        if self.mask is not None:
            words = self.mask[self._mask_rows(states)]
            bits = (words[..., None] >> jnp.arange(WORD_BITS, dtype=jnp.uint32)) & 1
            allowed = bits.astype(bool).reshape(*states.shape, -1)[..., : self.num_columns]
            return allowed | (self._only_column(states)[..., None] == jnp.arange(self.num_columns))
        edges, is_child = self.child_edges(states, self.widths[-1])
        columns = jnp.where(is_child, self.columns[edges], self.num_columns).reshape(-1, self.widths[-1])
        allowed = jnp.zeros((columns.shape[0], self.num_columns), bool)
        allowed = allowed.at[jnp.arange(columns.shape[0])[:, None], columns].set(True, mode="drop")
        return allowed.reshape(*states.shape, self.num_columns)

    def edges(self, states: Int[Array, "*batch"], columns: Int[Array, "*batch"]) -> Int[Array, "*batch"]:
        """Returns the edge from each state that each column stands for, -1 where the column is not allowed."""
        if self.mask is None:
            edges, is_child = self.child_edges(states, self.widths[-1])
            return jnp.where(is_child & (self.columns[edges] == columns[..., None]), edges, -1).max(-1)
        words = self.mask[self._mask_rows(states)]
        word_index, bit = columns // WORD_BITS, (columns % WORD_BITS).astype(jnp.uint32)
        word = jnp.take_along_axis(words, word_index[..., None], axis=-1)[..., 0]
        # The rank of the column among its siblings is the number of bits set before its own.
        is_before = jnp.arange(words.shape[-1]) < word_index[..., None]
        rank = jnp.where(is_before, jax.lax.population_count(words), 0).sum(-1)
        rank = rank + jax.lax.population_count(word & ((jnp.uint32(1) << bit) - 1))
        is_allowed = ((word >> bit) & 1).astype(bool) | (columns == self._only_column(states))
        # The row of a node with one child has no bits: the rank is 0.
        start, _ = self._edge_range(states)
        return jnp.where(is_allowed, start + rank.astype(jnp.int32), -1)

    def _only_column(self, states: Int[Array, "*batch"]) -> Int[Array, "*batch"]:
        """Returns the column of the only edge of each state that has one edge, otherwise -1."""
        start, end = self._edge_range(states)
        return jnp.where(end - start == 1, self.columns[jnp.where(end - start == 1, start, 0)], -1)

    def _mask_rows(self, states: Int[Array, "*batch"]) -> Int[Array, "*batch"]:
        # A mask comes with its rows.
        assert self.mask_rows is not None
        return self.mask_rows[self._nodes(states)]

    def _nodes(self, states: Int[Array, "*batch"]) -> Int[Array, "*batch"]:
        """Maps every item to the last node, which is padding without children."""
        return jnp.where(states < self.counts[0], states, self.edge_offsets.shape[0] - 2)

    def _edge_range(self, states: Int[Array, "*batch"]) -> tuple[Int[Array, "*batch"], Int[Array, "*batch"]]:
        """Returns the first edge of each state and the one after its last."""
        nodes = self._nodes(states)
        return self.edge_offsets[nodes], self.edge_offsets[nodes + 1]


def _flatten(trie: Trie) -> tuple[tuple, tuple]:
    """Splits a trie into arrays and static values."""
    names = [field.name for field in fields(Trie)]
    arrays = tuple(getattr(trie, name) for name in names if name not in _STATIC_FIELDS)
    return arrays, tuple(getattr(trie, name) for name in _STATIC_FIELDS)


def _unflatten(static: tuple, arrays: tuple) -> Trie:
    """Rebuilds a trie without its constructor: JAX also puts shardings and placeholders where arrays belong."""
    names = [field.name for field in fields(Trie)]
    trie = object.__new__(Trie)
    trie.__dict__.update(zip([name for name in names if name not in _STATIC_FIELDS], arrays, strict=True))
    trie.__dict__.update(zip(_STATIC_FIELDS, static, strict=True))
    return trie


jax.tree_util.register_pytree_node(Trie, _flatten, _unflatten)


def build_trie(
    sequences: Sequence[Sequence[int]],
    *,
    vocab_size: int,
    eos_token_id: int,
    pad_token_id: int | None = None,
    layout: str = "auto",
    over_catalogue: bool = False,
    dense_limit_bytes: int = DENSE_LIMIT_BYTES,
    auto_limit_bytes: int = AUTO_LIMIT_BYTES,
) -> Trie:
    """Builds the trie of token sequences; sequence i, given without its EOS, is item i.

    `over_catalogue`: for the catalogue softmax. "auto" is then dense up to `auto_limit_bytes` of mask, and csr above.
    Over the vocabulary it is csr, which selects about twice as fast on a CPU. "dense" is refused above
    `dense_limit_bytes` of mask.
    Raises InputError for an empty sequence, a sequence given twice, a token outside the vocabulary or equal to
    EOS or (where it is given) padding, an unknown layout, or a dense mask over its limit.
    """
    if layout not in LAYOUTS:
        raise InputError(f"trie layout: found {layout!r}, expected one of {', '.join(LAYOUTS)}")
    tree = prefix_tree(
        sequences, vocab_size=vocab_size, eos_token_id=eos_token_id, pad_token_id=pad_token_id, prune=over_catalogue
    )
    tokens = _choice_tokens(tree) if over_catalogue else None
    columns = tree.tokens if tokens is None else _edge_columns(tree, tokens)
    num_columns = vocab_size if tokens is None else _round_up(len(tokens))
    (choices,) = np.nonzero(tree.num_children > 1)
    # One row more than there are choices, that of all other nodes.
    padded_choices = _round_up(len(choices) + 1)
    mask_bytes = padded_choices * -(-num_columns // WORD_BITS) * 4
    if layout == "auto":
        layout = "dense" if over_catalogue and mask_bytes <= min(auto_limit_bytes, dense_limit_bytes) else "csr"
    elif layout == "dense" and mask_bytes > dense_limit_bytes:
        raise InputError(
            f"trie layout dense: the mask of {len(choices)} choices and {num_columns} tokens takes {mask_bytes} bytes, "
            f"expected at most {dense_limit_bytes}; use layout csr (--config.evaluation.trie_layout=csr)"
        )
    # One node more than there are, so that the last is always a node without children.
    padded_nodes, padded_edges = _round_up(tree.num_nodes + 1), _round_up(len(tree.tokens))
    offsets = np.searchsorted(tree.parents, np.arange(padded_nodes + 1)).astype(np.int32)
    mask = mask_rows = None
    if layout == "dense":
        mask = np.pad(
            bit_mask(tree.offsets, columns, choices, num_columns), ((0, padded_choices - len(choices)), (0, 0))
        )
        mask_rows = np.full(padded_nodes, padded_choices - 1, np.int32)
        mask_rows[choices] = np.arange(len(choices))

    def put(array: np.ndarray, size: int) -> Array:
        return jax.device_put(np.pad(array, (0, size - len(array))))

    return Trie(
        counts=jax.device_put(np.asarray([tree.num_nodes, tree.num_sequences, tree.depth], np.int32)),
        edge_offsets=jax.device_put(offsets),
        edge_states=put(tree.states, padded_edges),
        edge_tokens=put(tree.tokens, padded_edges),
        edge_columns=None if tokens is None else put(columns, padded_edges),
        tokens=None if tokens is None else put(tokens, num_columns),
        mask=None if mask is None else jax.device_put(mask),
        mask_rows=None if mask_rows is None else jax.device_put(mask_rows),
        layout=layout,
        vocab_size=vocab_size,
        widths=() if layout == "dense" else WIDTHS[: np.searchsorted(WIDTHS, np.diff(offsets).max()) + 1],
    )


def _choice_tokens(tree: PrefixTree) -> Int[np.ndarray, " columns"]:
    """Returns the tokens that follow a choice anywhere, ascending."""
    return np.unique(tree.tokens[tree.num_children[tree.parents] > 1])


def _edge_columns(tree: PrefixTree, tokens: Int[np.ndarray, " columns"]) -> Int[np.ndarray, " edges"]:
    """Returns where in `tokens` each edge's token stands, 0 for the only edge of a node: it may stand nowhere."""
    at_choice = tree.num_children[tree.parents] > 1
    return np.where(at_choice, np.searchsorted(tokens, tree.tokens), 0).astype(np.int32)


def _round_up(count: int) -> int:
    """Rounds up to one of 16 sizes per power of two (at most 1/16 more), and to at least 256."""
    step = max(256, 2 ** max(0, count.bit_length() - 5))
    return -(-max(1, count) // step) * step
