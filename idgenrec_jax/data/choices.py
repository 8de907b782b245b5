"""Where the IDs of a catalogue leave a choice: the nodes of the tree of targets that have several children.

The probability of an item under the catalogue softmax is the product, over the choices on its way, of the softmax over
the tokens that may follow there. Everything else of a target is forced: it has probability one.
"""

import dataclasses
from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Int, UInt32

from idgenrec_jax.data.prefix_tree import PrefixTree, prefix_tree

WORD_BITS = 32
MASK_LIMIT_BYTES = 64 * 2**20
"""The largest mask of all choices that is made; above it, narrow choices have lists of their children instead."""
NARROW_CHILDREN = 32
"""The most children of a narrow choice."""


class TargetChoices(NamedTuple):
    """The choices on the way to the targets of each row, in a few places a row; a free place has node -1.

    `positions` is where in the row's targets a chosen token stands, `nodes` the number of its choice, `tokens` what is
    chosen there, as its place in `Choices.tokens`. The choices of few tokens stand apart, in `narrow`, where a
    catalogue has them apart.
    """

    positions: Int[Array | np.ndarray, "rows choices"]
    nodes: Int[Array | np.ndarray, "rows choices"]
    tokens: Int[Array | np.ndarray, "rows choices"]
    narrow: "TargetChoices | None" = None


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
    mask_limit_bytes: int = MASK_LIMIT_BYTES

    @property
    def num_choices(self) -> int:
        """How many nodes have several children."""
        return len(self.offsets) - 1

    def lengths(self) -> Int[np.ndarray, " ways"]:
        """Return how many tokens of each way's target are decoded: those up to its last choice, at least one."""
        lengths = np.ones(len(self.starts) - 1, np.int32)
        np.maximum.at(lengths, self._way_of_step(), self.positions + 1)
        return lengths

    @cached_property
    def is_narrow(self) -> Bool[np.ndarray, " choices"]:
        """Which choices have so few tokens that these are listed: none, where a mask of all choices is small enough."""
        if self.num_choices * len(self.tokens) <= 8 * self.mask_limit_bytes:
            return np.zeros(self.num_choices, bool)
        return np.diff(self.offsets) <= NARROW_CHILDREN

    def counts(self, *, narrow: bool = False) -> Int[np.ndarray, " ways"]:
        """Return how many wide choices, or narrow ones, each way has."""
        chosen = self.is_narrow[self.nodes] == narrow
        before = np.concatenate([np.zeros(1, np.int32), np.cumsum(chosen, dtype=np.int32)])
        return np.diff(before[self.starts])

    def way(self, way: int) -> list[tuple[int, int, int, bool]]:
        """Return position, node, chosen token, and whether it is narrow, of every choice of one way."""
        some = slice(self.starts[way], self.starts[way + 1])
        nodes = self.nodes[some]
        columns = self.positions[some], nodes, self.chosen[some], self.is_narrow[nodes]
        return list(zip(*(column.tolist() for column in columns), strict=True))

    def mask(self) -> UInt32[np.ndarray, "wide words"]:
        """Return one bit for every wide choice and token: set where the token may follow."""
        return bit_mask(self.offsets, self.children, np.flatnonzero(~self.is_narrow), len(self.tokens))

    def _way_of_step(self) -> Int[np.ndarray, " steps"]:
        return np.repeat(np.arange(len(self.starts) - 1), np.diff(self.starts))


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


def place_choices(
    choices: Choices, rows: Sequence[Sequence[tuple[int, int]]], num_rows: int, room: tuple[int, int]
) -> TargetChoices:
    """Return the choices of the targets in each row, one after the other, given as (tokens decoded, way).

    A row has `room` for so many wide and narrow choices.
    """
    # Of wide and of narrow choices: positions, nodes, tokens.
    placed = [np.zeros((3, num_rows, width), np.int32) for width in room]
    for arrays in placed:
        arrays[1] -= 1
    for row, targets in enumerate(rows):
        start, ends = 0, [0, 0]
        for length, way in targets:
            for position, node, token, is_narrow in choices.way(way):
                placed[is_narrow][:, row, ends[is_narrow]] = start + position, node, token
                ends[is_narrow] += 1
            start += length
    wide, narrow = (TargetChoices(*arrays) for arrays in placed)
    return wide._replace(narrow=narrow) if room[1] else wide


def find_choices(
    targets: Sequence[Sequence[Sequence[int]]], *, eos_token_id: int, mask_limit_bytes: int = MASK_LIMIT_BYTES
) -> Choices:
    """Return the choices of the targets of all items, given for each target text, without EOS.

    Raises:
        InputError: as `prefix_tree`.
    """
    largest = max((max(target, default=0) for of_kind in targets for target in of_kind), default=0)
    vocab_size = 1 + max(eos_token_id, largest)
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
    arrays = {
        "tokens": tokens,
        "offsets": offsets,
        "children": np.concatenate(children),
        "starts": starts,
        "positions": positions,
        "nodes": nodes,
        "chosen": chosen,
    }
    integers: dict[str, Any] = {name: array.astype(np.int32) for name, array in arrays.items()}
    return Choices(**integers, num_items=num_items, mask_limit_bytes=mask_limit_bytes)


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
