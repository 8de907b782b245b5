"""Where the IDs of a catalogue leave a choice: the nodes of the tree of targets that have several children.

The probability of an item under the catalogue softmax is the product, over the choices on its way, of the softmax over
the tokens that may follow there. Everything else of a target is forced: it has probability one.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Int, UInt32

from idgenrec_jax.data.prefix_tree import PrefixTree, prefix_tree

WORD_BITS = 32


class TargetChoices(NamedTuple):
    """The choices on the way to the targets of each row, in a few places a row; a free place has node -1.

    `positions` is where in the row's targets a chosen token stands, `nodes` the number of its choice, `tokens` what is
    chosen there, as its place in `Choices.tokens`.
    """

    positions: Int[Array | np.ndarray, "rows choices"]
    nodes: Int[Array | np.ndarray, "rows choices"]
    tokens: Int[Array | np.ndarray, "rows choices"]


@dataclasses.dataclass(frozen=True)
class Choices:
    """The choices of all targets, numbered through the target texts of all templates, and each item's way past them.

    `tokens` are the tokens that may be chosen anywhere, ascending. The children of choice c are `children[offsets[c]`
    up to `offsets[c + 1]]`, places in `tokens`. Item i under target text f is way f * items + i: its choices are the
    entries `starts[way]` up to `starts[way + 1]` of `positions` (of the chosen token within the target), `nodes` and
    `chosen` (places in `tokens`).
    """

    tokens: Int[np.ndarray, " catalogue_tokens"]
    offsets: Int[np.ndarray, " choices_plus_one"]
    children: Int[np.ndarray, " children"]
    starts: Int[np.ndarray, " ways_plus_one"]
    positions: Int[np.ndarray, " steps"]
    nodes: Int[np.ndarray, " steps"]
    chosen: Int[np.ndarray, " steps"]
    num_items: int

    @property
    def num_choices(self) -> int:
        """How many nodes have several children."""
        return len(self.offsets) - 1

    def lengths(self) -> Int[np.ndarray, " ways"]:
        """Return how many tokens of each way's target are decoded: those up to its last choice, at least one."""
        lengths = np.ones(len(self.starts) - 1, np.int32)
        np.maximum.at(lengths, self._way_of_step(), self.positions + 1)
        return lengths

    def counts(self) -> Int[np.ndarray, " ways"]:
        """Return how many choices each way has."""
        return np.diff(self.starts)

    def way(self, way: int) -> tuple[list[int], list[int], list[int]]:
        """Return positions, nodes and chosen tokens of one way."""
        some = slice(self.starts[way], self.starts[way + 1])
        return self.positions[some].tolist(), self.nodes[some].tolist(), self.chosen[some].tolist()

    def mask(self, rows: Int[np.ndarray, " rows"] | None = None) -> UInt32[np.ndarray, "rows words"]:
        """Return one bit for every (choice, token): set where the token may follow; `rows` are some choices."""
        rows = np.arange(self.num_choices) if rows is None else rows
        return bit_mask(self.offsets, self.children, rows, len(self.tokens))

    def _way_of_step(self) -> Int[np.ndarray, " steps"]:
        return np.repeat(np.arange(len(self.starts) - 1), self.counts())


def bit_mask(
    offsets: Int[np.ndarray, " nodes_plus_one"],
    children: Int[np.ndarray, " children"],
    rows: Int[np.ndarray, " rows"],
    num_tokens: int,
) -> UInt32[np.ndarray, "rows words"]:
    """Return bit `token % 32` of word `token // 32` of each row: set where `token` is a child of that node."""
    mask = np.zeros((len(rows), -(-num_tokens // WORD_BITS)), np.uint32)
    counts = np.diff(offsets)[rows]
    row = np.repeat(np.arange(len(rows)), counts)
    first = np.repeat(offsets[rows] - np.cumsum(counts) + counts, counts)
    tokens = children[first + np.arange(len(row))]
    bits = np.left_shift(np.uint32(1), (tokens % WORD_BITS).astype(np.uint32))
    np.bitwise_or.at(mask, (row, tokens // WORD_BITS), bits)
    return mask


def find_choices(targets: Sequence[Sequence[Sequence[int]]], *, eos_token_id: int) -> Choices:
    """Return the choices of the targets of all items, given for each target text, without EOS.

    Raises:
        InputError: as `prefix_tree`.
    """
    vocab_size = 1 + max(eos_token_id, max(max(target) for of_kind in targets for target in of_kind))
    trees = [prefix_tree(of_kind, vocab_size=vocab_size, eos_token_id=eos_token_id, prune=True) for of_kind in targets]
    tokens = np.unique(np.concatenate([tree.tokens[tree.num_children[tree.parents] > 1] for tree in trees]))
    fanouts, children, ways, first = [], [], [], 0
    for kind, tree in enumerate(trees):
        counts = tree.num_children
        is_choice = counts > 1
        number = first + np.cumsum(is_choice) - 1
        at_choice = is_choice[tree.parents]
        fanouts.append(counts[is_choice])
        children.append(np.searchsorted(tokens, tree.tokens[at_choice]))
        ways.append(_ways(tree, kind, number, tokens))
        first += int(is_choice.sum())
    way, positions, nodes, chosen = (np.concatenate(parts) for parts in zip(*ways, strict=True))
    num_items = len(targets[0])
    starts = np.searchsorted(way, np.arange(len(targets) * num_items + 1))
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.concatenate(fanouts))])
    integers = (
        array.astype(np.int32)
        for array in (tokens, offsets, np.concatenate(children), starts, positions, nodes, chosen)
    )
    return Choices(*integers, num_items=num_items)


def _ways(
    tree: PrefixTree, kind: int, number: Int[np.ndarray, " nodes"], tokens: Int[np.ndarray, " catalogue_tokens"]
) -> tuple[Int[np.ndarray, " steps"], ...]:
    """Return way, position, choice and chosen token of every choice of every sequence, in the order of ways."""
    num_nodes = tree.num_nodes
    edge_into = np.full(num_nodes + tree.num_sequences, -1, np.int64)
    edge_into[tree.states] = np.arange(len(tree.states))
    # From every item to the root, all items one edge at a time.
    items = np.arange(tree.num_sequences)
    states = num_nodes + items
    steps = []
    while len(items):
        edges = edge_into[states]
        parents = tree.parents[edges]
        at_choice = tree.num_children[parents] > 1
        steps.append((items[at_choice], parents[at_choice], tree.tokens[edges[at_choice]]))
        up = parents > 0
        items, states = items[up], parents[up]
    items, nodes, chosen = (np.concatenate(parts) for parts in zip(*steps, strict=True))
    depth = tree.depths()
    order = np.lexsort((depth[nodes], items))
    items, nodes, chosen = items[order], nodes[order], chosen[order]
    return kind * tree.num_sequences + items, depth[nodes], number[nodes], np.searchsorted(tokens, chosen)
