"""The tree of a catalogue's prefixes in blocks, from which `decoding.catalogue` scores every item.

Each node is one decoder position that attends to its ancestors. Nodes in depth-first order are cut into blocks of one
length. A block begins with the ancestors of its nodes, so it is a decoder row of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from idgenrec_jax.data.packing import round_up
from idgenrec_jax.data.prefix_tree import PrefixTree, prefix_tree

BLOCK_LENGTH = 128
"""Decoder positions computed at once for each user."""

SIZE_MULTIPLE = 32
"""Of the positions of a block, and of those of them that are read."""
PATH_MULTIPLE = 4
"""Of the edges on the way to an item."""


class PlanArrays(NamedTuple):
    """The tree of prefixes in blocks; sizes are rounded up, so that those of successive rounds share a program.

    Of each block: `tokens` are decoder inputs, but for the start token, which stands at position 0. `positions` are
    their places in an ID. `ends[k]` is the first place of the block's row that is not below place k. `outputs` are the
    places of the nodes whose edges have a probability.

    Such edges are numbered in depth-first order of their nodes. Block b has the edges `first_edges[b]` up to
    `first_edges[b + 1]`. Their distinct tokens are `first_tokens[b]` up to `first_tokens[b + 1]` of `block_tokens`,
    which point into `tokens_used`, those of all edges. An edge leaves output number `edge_outputs` of its block by
    token number `edge_tokens` of its block. `paths[:, i]` are the edges on the way to item i, then -1. `lengths[i]`
    counts the tokens of its ID and EOS.
    """

    tokens: Int[Array, "blocks length"]
    positions: Int[Array, "blocks length"]
    ends: Int[Array, "blocks length"]
    outputs: Int[Array, "blocks outputs"]
    first_edges: Int[Array, " blocks_plus_one"]
    first_tokens: Int[Array, " blocks_plus_one"]
    edge_outputs: Int[Array, " edges"]
    edge_tokens: Int[Array, " edges"]
    block_tokens: Int[Array, " places"]
    tokens_used: Int[Array, " tokens"]
    paths: Int[Array, "most_edges items"]
    lengths: Float[Array, " items"]
    num_blocks: Int[Array, ""]


@dataclass(frozen=True)
class CataloguePlan:
    """What `score_items` needs of a catalogue: a pytree of device arrays, usable as an argument of a jitted function.

    Static: `over_catalogue`, whether probabilities are normalised over what continues an ID of the catalogue (else over
    the vocabulary), and `widths`, ascending, the numbers of edges of a block that a program has a case for.
    """

    arrays: PlanArrays
    over_catalogue: bool
    widths: tuple[int, ...]

    @property
    def num_items(self) -> int:
        """The number of items."""
        return self.arrays.lengths.shape[0]

    @property
    def num_positions(self) -> int:
        """The decoder positions computed for one user, ancestors repeated; outside jit only."""
        return int(jax.device_get(self.arrays.num_blocks)) * self.arrays.tokens.shape[1]


jax.tree_util.register_dataclass(CataloguePlan, data_fields=["arrays"], meta_fields=["over_catalogue", "widths"])


def catalogue_plan(
    sequences: Sequence[Sequence[int]],
    *,
    vocab_size: int,
    eos_token_id: int,
    pad_token_id: int | None = None,
    over_catalogue: bool,
    block_length: int = BLOCK_LENGTH,
) -> CataloguePlan:
    """Return the plan of token sequences; sequence i, given without its EOS, is item i.

    Over the catalogue only the nodes are decoded that have a choice at them or below them. Over the vocabulary every
    token of an ID has a probability, and all nodes are decoded. A row is longer than `block_length` only where an ID
    is.

    Raises:
        InputError: as `prefix_tree`.
    """
    tree = prefix_tree(
        sequences,
        vocab_size=vocab_size,
        eos_token_id=eos_token_id,
        pad_token_id=pad_token_id,
        prune=over_catalogue,
    )
    order = _depth_first(tree)
    # Edges that have a probability, in depth-first order of the nodes that they leave.
    counts = tree.num_children[order.nodes]
    counts = np.where(counts > 1, counts, 0) if over_catalogue else counts
    first_edge = np.concatenate([[0], np.cumsum(counts)])
    edge_node = np.repeat(np.arange(len(counts)), counts)
    edges = tree.offsets[order.nodes[edge_node]] + np.arange(len(edge_node)) - first_edge[edge_node]
    tokens_used, edge_tokens = np.unique(tree.tokens[edges], return_inverse=True)

    length = max(min(block_length, round_up(tree.num_nodes, SIZE_MULTIPLE)), round_up(2 * tree.depth, SIZE_MULTIPLE))
    (tokens, positions, ends), starts = _rows(tree, order, length)
    outputs, edge_outputs = _outputs(counts, starts, order.depths)
    edge_starts = first_edge[starts]
    block_tokens, token_starts, edge_tokens = _distinct_tokens(edge_tokens, edge_starts)

    widest = int(np.diff(edge_starts).max(initial=1))
    widths = [4 * length]
    while widths[-1] < widest:
        widths.append(4 * widths[-1])
    numbers = np.full(len(tree.tokens), -1, np.int64)
    numbers[edges] = np.arange(len(edges))
    num_blocks = len(starts) - 1
    # Slices of the widest case must lie inside, wherever they start.
    padded_edges = _padded_size(len(edges)) + widths[-1]
    padded_blocks = _padded_size(num_blocks)

    def put(values: Int[np.ndarray, "*shape"], size: int) -> Int[Array, "*padded"]:
        return jax.device_put(_padded(values, size))

    arrays = PlanArrays(
        tokens=put(tokens, padded_blocks),
        positions=put(positions, padded_blocks),
        ends=put(ends, padded_blocks),
        outputs=put(outputs, padded_blocks),
        first_edges=put(edge_starts, padded_blocks + 1),
        first_tokens=put(token_starts, padded_blocks + 1),
        edge_outputs=put(edge_outputs, padded_edges),
        edge_tokens=put(edge_tokens, padded_edges),
        block_tokens=put(block_tokens, padded_edges),
        tokens_used=put(tokens_used, _padded_size(len(tokens_used))),
        paths=jax.device_put(_paths(tree, numbers).astype(np.int32)),
        lengths=jax.device_put(np.asarray([len(sequence) + 1 for sequence in sequences], np.float32)),
        num_blocks=jax.device_put(np.int32(num_blocks)),
    )
    return CataloguePlan(arrays, over_catalogue, tuple(widths))


class _DepthFirst(NamedTuple):
    """The nodes of a tree in depth-first order, each one's depth, and the place after the last node below it."""

    nodes: Int[np.ndarray, " nodes"]
    depths: Int[np.ndarray, " nodes"]
    ends: Int[np.ndarray, " nodes"]


def _depth_first(tree: PrefixTree) -> _DepthFirst:
    num_nodes, levels = tree.num_nodes, tree.levels()
    inner = tree.states < num_nodes
    sizes = np.ones(num_nodes, np.int64)
    places = np.zeros(num_nodes, np.int64)
    edge_slices = [slice(tree.offsets[first], tree.offsets[end]) for first, end in levels]
    for some in reversed(edge_slices):
        parents, states = tree.parents[some][inner[some]], tree.states[some][inner[some]]
        np.add.at(sizes, parents, sizes[states])
    for some in edge_slices:
        parents, states = tree.parents[some][inner[some]], tree.states[some][inner[some]]
        # Siblings stand side by side: a node comes after its parent and after all that is below its earlier siblings.
        before = np.cumsum(sizes[states]) - sizes[states]
        is_first = np.diff(parents, prepend=-1) > 0
        before_family = np.maximum.accumulate(np.where(is_first, before, 0))
        places[states] = places[parents] + 1 + before - before_family
    nodes = np.argsort(places)
    return _DepthFirst(nodes, tree.depths()[nodes], np.arange(num_nodes) + sizes[nodes])


def _rows(
    tree: PrefixTree, order: _DepthFirst, length: int
) -> tuple[tuple[Int[np.ndarray, "blocks length"], ...], Int[np.ndarray, " blocks_plus_one"]]:
    """Return tokens, positions and ends of the rows of all blocks, and the first node of each block in `order`."""
    num_nodes = tree.num_nodes
    inner = tree.states < num_nodes
    token_into = np.zeros(num_nodes, np.int64)
    token_into[tree.states[inner]] = tree.tokens[inner]
    parent_of = np.zeros(num_nodes, np.int64)
    parent_of[tree.states[inner]] = tree.parents[inner]
    place = np.argsort(order.nodes)
    tokens, parents = token_into[order.nodes], place[parent_of[order.nodes]]
    rows, starts = [], [0]
    while starts[-1] < num_nodes:
        start = starts[-1]
        depth = int(order.depths[start])
        end = min(start + length - depth, num_nodes)
        # Every ancestor of a later node of the block is in the block, or is an ancestor of its first node.
        ancestors = np.zeros(depth, np.int64)
        above = start
        for level in reversed(range(depth)):
            above = ancestors[level] = parents[above]
        members = np.concatenate([ancestors, np.arange(start, end)])
        free = length - len(members)
        rows.append(
            (
                np.pad(tokens[members], (0, free)),
                np.pad(order.depths[members], (0, free)),
                # A free place sees itself, so that its softmax has something to sum.
                np.concatenate([np.minimum(order.ends[members], end) - start + depth, length - np.arange(free)[::-1]]),
            )
        )
        starts.append(end)
    return tuple(np.stack(arrays) for arrays in zip(*rows, strict=True)), np.asarray(starts)


def _outputs(
    counts: Int[np.ndarray, " nodes"], starts: Int[np.ndarray, " blocks_plus_one"], depths: Int[np.ndarray, " nodes"]
) -> tuple[Int[np.ndarray, "blocks outputs"], Int[np.ndarray, " edges"]]:
    """Return the places in each block's row of the nodes with edges, and for each edge the number of its node there.

    `counts` are the edges of each node. In a row the ancestors of its first node come first, as many as its depth.
    """
    nodes = np.flatnonzero(counts)
    block_of = np.searchsorted(starts, nodes, side="right") - 1
    before = np.concatenate([[0], np.cumsum(counts > 0)])
    number = before[nodes] - before[starts[block_of]]
    outputs = np.zeros((len(starts) - 1, round_up(int(number.max(initial=0)) + 1, SIZE_MULTIPLE)), np.int64)
    outputs[block_of, number] = nodes - starts[block_of] + depths[starts[block_of]]
    return outputs, np.repeat(number, counts[nodes])


def _distinct_tokens(
    edge_tokens: Int[np.ndarray, " edges"], edge_starts: Int[np.ndarray, " blocks_plus_one"]
) -> tuple[Int[np.ndarray, " tokens"], Int[np.ndarray, " blocks_plus_one"], Int[np.ndarray, " edges"]]:
    """Return the distinct tokens of each block, where each block's begin, and for each edge its token's place there."""
    blocks = [
        np.unique(edge_tokens[first:end], return_inverse=True)
        for first, end in zip(edge_starts[:-1], edge_starts[1:], strict=True)
    ]
    tokens, places = zip(*blocks, strict=True)
    starts = np.concatenate([[0], np.cumsum([len(of_block) for of_block in tokens])])
    return np.concatenate(tokens), starts, np.concatenate(places)


def _paths(tree: PrefixTree, numbers: Int[np.ndarray, " edges"]) -> Int[np.ndarray, "most_edges items"]:
    """Return the edges with a probability on the way to each item, by the number that each edge of the tree has."""
    edge_into = np.full(tree.num_nodes + tree.num_sequences, -1, np.int64)
    edge_into[tree.states] = np.arange(len(tree.states))
    states = tree.num_nodes + np.arange(tree.num_sequences)
    paths = []
    while (states > 0).any():
        edges = edge_into[states]
        paths.append(np.where(states > 0, numbers[edges], -1))
        states = np.where(states > 0, tree.parents[edges], 0)
    # [levels, items] with gaps -> [most_edges, items], filled from the start
    ordered = -np.sort(-np.stack(paths), axis=0)
    most = round_up(max(1, int((ordered >= 0).sum(axis=0).max())), PATH_MULTIPLE)
    return np.pad(ordered, ((0, most), (0, 0)), constant_values=-1)[:most]


def _padded(values: Int[np.ndarray, "*shape"], size: int) -> Int[np.ndarray, "*padded"]:
    """The values as int32, with zeros behind them up to `size`."""
    return np.pad(values, [(0, size - len(values)), *[(0, 0)] * (values.ndim - 1)]).astype(np.int32)


def _padded_size(count: int) -> int:
    """One of four sizes per power of two that is not below `count`."""
    return round_up(max(count, 1), 2 ** max(0, count.bit_length() - 3))
