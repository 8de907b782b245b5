"""The prefix tree of token sequences, on the host: nodes numbered breadth first, edges by (parent, token).

End of sequence is an ordinary edge: that of sequence i leads to state num_nodes + i. A *choice* is a node with several
children. What follows a sequence's last choice is forced; a pruned tree leaves it out.
"""

from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from idgenrec_jax.errors import InputError


class PrefixTree(NamedTuple):
    """Edges in the order (parent, token), so that the children of a node are contiguous, all arrays int32.

    `states` is where each edge leads: a node, or `num_nodes` + the number of a sequence. `offsets[n]` is the first edge
    of node n. `depth` is the most edges from the root to a sequence.
    """

    parents: Int[np.ndarray, " edges"]
    tokens: Int[np.ndarray, " edges"]
    states: Int[np.ndarray, " edges"]
    offsets: Int[np.ndarray, " nodes_plus_one"]
    num_sequences: int
    depth: int

    @property
    def num_nodes(self) -> int:
        """The number of inner nodes, root included."""
        return len(self.offsets) - 1

    @property
    def num_children(self) -> Int[np.ndarray, " nodes"]:
        """How many edges leave each node; more than one make it a choice."""
        return np.diff(self.offsets)

    def levels(self) -> list[tuple[int, int]]:
        """Return the first node of every level and the one after its last."""
        levels, first, end = [], 0, 1
        while first < end:
            levels.append((first, end))
            # Numbered breadth first, the nodes that these lead to come next.
            states = self.states[self.offsets[first] : self.offsets[end]]
            first, end = end, end + int((states < self.num_nodes).sum())
        return levels

    def depths(self) -> Int[np.ndarray, " nodes"]:
        """Return how many edges lie between the root and each node."""
        levels = self.levels()
        return np.repeat(np.arange(len(levels), dtype=np.int32), [end - first for first, end in levels])


def prefix_tree(
    sequences: Sequence[Sequence[int]],
    *,
    vocab_size: int,
    eos_token_id: int,
    pad_token_id: int | None = None,
    prune: bool = False,
) -> PrefixTree:
    """Return the tree of token sequences, each given without its EOS; with `prune` each ends at its last choice.

    Raises:
        InputError: an empty sequence, one given twice, or a token outside the vocabulary or equal to EOS or (where it
            is given) padding.
    """
    tokens, lengths = _token_matrix(sequences, vocab_size, eos_token_id, pad_token_id)
    parents, edge_tokens, states, num_nodes = _breadth_first_edges(tokens, lengths, eos_token_id)
    tree = PrefixTree(
        parents, edge_tokens, states, _offsets(parents, num_nodes), num_sequences=len(lengths), depth=tokens.shape[1]
    )
    return _pruned(tree) if prune else tree


def _offsets(parents: Int[np.ndarray, " edges"], num_nodes: int) -> Int[np.ndarray, " nodes_plus_one"]:
    return np.searchsorted(parents, np.arange(num_nodes + 1)).astype(np.int32)


def _pruned(tree: PrefixTree) -> PrefixTree:
    """Return the tree whose sequences end at their last choices.

    A node is kept where a choice lies at it or below it; the edge into one that is not leads to the sequence itself.
    """
    num_nodes, is_node = tree.num_nodes, tree.states < tree.num_nodes
    keeps = tree.num_children > 1
    # The sequence below a node that is not kept.
    only = np.zeros(num_nodes, np.int32)
    levels = tree.levels()
    for first, end in reversed(levels):
        edges = slice(tree.offsets[first], tree.offsets[end])
        parents, states, inner = tree.parents[edges], tree.states[edges], is_node[edges]
        only[parents[~inner]] = states[~inner] - num_nodes
        only[parents[inner]] = only[states[inner]]
        keeps[parents[inner]] |= keeps[states[inner]]
    keeps[0] = True
    new_number = np.cumsum(keeps, dtype=np.int32) - 1
    kept_edges = keeps[tree.parents]
    parents, tokens, states = (array[kept_edges] for array in (tree.parents, tree.tokens, tree.states))
    count = int(keeps.sum())
    is_inner = (states < num_nodes) & keeps[np.minimum(states, num_nodes - 1)]
    leaf = np.where(states >= num_nodes, states - num_nodes, only[np.minimum(states, num_nodes - 1)])
    states = np.where(is_inner, new_number[np.minimum(states, num_nodes - 1)], count + leaf).astype(np.int32)
    return PrefixTree(
        new_number[parents],
        tokens,
        states,
        _offsets(new_number[parents], count),
        num_sequences=tree.num_sequences,
        depth=sum(bool(keeps[first:end].any()) for first, end in levels),
    )


def _token_matrix(
    sequences: Sequence[Sequence[int]], vocab_size: int, eos_token_id: int, pad_token_id: int | None
) -> tuple[Int[np.ndarray, "items depth"], Int[np.ndarray, " items"]]:
    """Returns the sequences with EOS, padded by -1, and their lengths without EOS; raises InputError on a bad token."""
    if len(sequences) == 0:
        raise InputError("trie: found no sequences, expected at least one")
    lengths = np.fromiter((len(sequence) for sequence in sequences), np.int64, len(sequences))
    if lengths.min() == 0:
        item = int(lengths.argmin())
        raise InputError(f"trie: the sequence of item {item} is empty; give it at least one token")
    flat = np.fromiter(chain.from_iterable(sequences), np.int64, int(lengths.sum()))
    is_bad = (flat < 0) | (flat >= vocab_size) | (flat == eos_token_id)
    if pad_token_id is not None:
        is_bad |= flat == pad_token_id
    if is_bad.any():
        place = int(is_bad.argmax())
        item = int(np.searchsorted(np.cumsum(lengths), place, side="right"))
        padding = "" if pad_token_id is None else f" and padding ({pad_token_id})"
        raise InputError(
            f"trie: the sequence of item {item} holds token {flat[place]}, expected tokens from 0 to {vocab_size - 1} "
            f"other than EOS ({eos_token_id}){padding}"
        )
    columns = np.arange(int(lengths.max()) + 1)
    matrix = np.full((len(sequences), len(columns)), -1, np.int32)
    matrix[columns < lengths[:, None]] = flat
    matrix[np.arange(len(sequences)), lengths] = eos_token_id
    return matrix, lengths


def _breadth_first_edges(
    tokens: Int[np.ndarray, "items depth"], lengths: Int[np.ndarray, " items"], eos_token_id: int
) -> tuple[Int[np.ndarray, " edges"], Int[np.ndarray, " edges"], Int[np.ndarray, " edges"], int]:
    """Returns parents, tokens and target states of all edges, and the number of nodes.

    Edges are ordered by (parent, token), nodes numbered breadth first. Raises InputError when two items have the
    same sequence.
    """
    order = np.lexsort(tokens.T[::-1])
    tokens, lengths = tokens[order], lengths[order]
    num_items, depth = tokens.shape
    # is_new[i] tells whether the prefix of row i, up to the level at hand, differs from the one of row i - 1.
    is_new = np.zeros(num_items, bool)
    is_new[0] = True
    node_of_row = np.zeros(num_items, np.int64)
    num_nodes = 1
    levels = []
    for level in range(depth):
        is_new[1:] |= tokens[1:, level] != tokens[:-1, level]
        rows = np.flatnonzero(is_new & (level <= lengths))
        new_tokens = tokens[rows, level]
        is_leaf = new_tokens == eos_token_id
        new_states = num_nodes + np.cumsum(~is_leaf) - 1
        # An item's own number stands in, negated, until the number of nodes is known.
        levels.append((node_of_row[rows], new_tokens, np.where(is_leaf, -1 - order[rows], new_states)))
        starts = np.cumsum(is_new & (level < lengths)) - 1
        node_of_row = num_nodes + starts
        num_nodes += int((~is_leaf).sum())
    if not is_new.all():
        row = int(is_new.argmin())
        first, second = sorted((int(order[row - 1]), int(order[row])))
        raise InputError(
            f"trie: items {first} and {second} have the same sequence {tokens[row, : lengths[row]].tolist()}; "
            "give every item a sequence of its own"
        )
    parents, edge_tokens, states = (np.concatenate(parts).astype(np.int32) for parts in zip(*levels, strict=True))
    states = np.where(states < 0, num_nodes - 1 - states, states).astype(np.int32)
    return parents, edge_tokens, states, num_nodes
