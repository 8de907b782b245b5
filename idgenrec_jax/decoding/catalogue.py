"""Every item's log-probability, exactly, by one decoder pass over the tree of prefixes.

Each node of the tree is one decoder position that attends to its ancestors and to the user's encoding. Nodes in
depth-first order are cut into blocks of one length. A block begins with the ancestors of its nodes, so it is a decoder
row of its own, and memory holds one block and one number for every edge, however many items there are.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Bool, Float, Int

from idgenrec_jax.data.prefix_tree import PrefixTree, prefix_tree
from idgenrec_jax.models.row_parts import in_parts
from idgenrec_jax.models.t5 import T5, KeysValues
from idgenrec_jax.sharding import constrain

BLOCK_LENGTH = 128
"""Decoder positions computed at once for each user."""

LOGITS_BYTES = {"cpu": 16 * 2**20, "gpu": 512 * 2**20, "tpu": 512 * 2**20}
"""Logits over the whole vocabulary that are held at once, by backend."""


class PlanArrays(NamedTuple):
    """The tree of prefixes in blocks; sizes are rounded up, so that those of successive rounds share a program.

    Of each block: `tokens` are decoder inputs, `positions` their places in an ID, `ends[k]` the first place of the
    block's row that is not below place k. Edges with a probability are numbered in depth-first order of their nodes:
    block b has the edges `first_edges[b]` up to `first_edges[b + 1]` and the places `first_tokens[b]` up to
    `first_tokens[b + 1]` of `block_tokens`, the distinct tokens of these edges. An edge leaves the node at place
    `edge_nodes` of its block's row, by token `edge_places` of its block's tokens. `paths[:, i]` are the edges on the
    way to item i, then -1; `lengths[i]` counts the tokens of its ID and EOS. `tokens_used` are all tokens of edges, to
    which `block_tokens` point. `counts` is the number of blocks.
    """

    tokens: Int[Array, "blocks length"]
    positions: Int[Array, "blocks length"]
    ends: Int[Array, "blocks length"]
    first_edges: Int[Array, " blocks_plus_one"]
    first_tokens: Int[Array, " blocks_plus_one"]
    edge_nodes: Int[Array, " edges"]
    edge_places: Int[Array, " edges"]
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
    start_token_id: int,
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

    length = max(min(block_length, _round_up(tree.num_nodes, 32)), _round_up(2 * tree.depth, 32))
    rows, starts = _rows(tree, order, length, start_token_id)
    edge_starts = first_edge[starts]
    block_tokens, places = [], []
    for first, end in zip(edge_starts[:-1], edge_starts[1:], strict=True):
        distinct, place = np.unique(edge_tokens[first:end], return_inverse=True)
        block_tokens.append(distinct)
        places.append(place)
    token_starts = np.concatenate([[0], np.cumsum([len(distinct) for distinct in block_tokens])])
    # The place of an edge's node within the row of its block, in which ancestors come first.
    block_of_node = np.searchsorted(starts, edge_node, side="right") - 1
    edge_nodes = edge_node - starts[block_of_node] + order.depths[starts[:-1]][block_of_node]

    widest = int(np.diff(edge_starts).max(initial=1))
    widths = [4 * length]
    while widths[-1] < widest:
        widths.append(4 * widths[-1])
    numbers = np.full(len(tree.tokens), -1, np.int64)
    numbers[edges] = np.arange(len(edges))
    num_blocks = len(starts) - 1
    # Slices of the widest case must lie inside, wherever they start.
    padded_edges = _round_up(len(edges)) + widths[-1]
    arrays = PlanArrays(
        *(_padded(array, _round_up(num_blocks)) for array in rows),
        *(_padded(array, _round_up(num_blocks) + 1) for array in (edge_starts, token_starts)),
        *(_padded(array, padded_edges) for array in (edge_nodes, np.concatenate(places), np.concatenate(block_tokens))),
        _padded(tokens_used, _round_up(len(tokens_used))),
        _paths(tree, numbers).astype(np.int32),
        np.asarray([len(sequence) + 1 for sequence in sequences], np.float32),
        np.int32(num_blocks),
    )
    return CataloguePlan(jax.device_put(arrays), over_catalogue, tuple(widths))


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
    tree: PrefixTree, order: _DepthFirst, length: int, start_token_id: int
) -> tuple[tuple[Int[np.ndarray, "blocks length"], ...], Int[np.ndarray, " blocks_plus_one"]]:
    """Return tokens, positions and ends of the rows of all blocks, and the first node of each block in `order`."""
    num_nodes = tree.num_nodes
    inner = tree.states < num_nodes
    token_into = np.full(num_nodes, start_token_id, np.int64)
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
    most = _round_up(max(1, int((ordered >= 0).sum(axis=0).max())), 4)
    return np.pad(ordered, ((0, most), (0, 0)), constant_values=-1)[:most]


def score_items(
    model: T5,
    encoded: Float[Array, "batch source d_model"],
    encoder_mask: Bool[Array, "batch source"],
    plan: CataloguePlan,
    length_penalty: float | Float[Array, ""] = 0.0,
) -> Float[Array, "batch items"]:
    """Return the log-probability of every item after each prompt, over (its tokens, EOS counted) ** length_penalty.

    Float32. Over the catalogue the probabilities of a user's items sum to one. Over the vocabulary they are those of
    the search: the trie forbids tokens without renormalising.
    """
    # Once for all blocks and users: a gather of rows that several devices may hold.
    table = constrain(model.output_table[plan.arrays.tokens_used], "tokens d_model").astype(model.config.dtype)
    score = partial(_score_part, model, plan, table)
    scores = in_parts(score, encoded, encoder_mask, positions=plan.arrays.tokens.shape[1])
    return scores / plan.arrays.lengths**length_penalty


def _score_part(
    model: T5,
    plan: CataloguePlan,
    table: Float[Array, "tokens d_model"],
    encoded: Float[Array, "batch source d_model"],
    encoder_mask: Bool[Array, "batch source"],
) -> Float[Array, "batch items"]:
    """The sums of log-probabilities for users who are computed together."""
    arrays = plan.arrays
    keys_values = model.encoder_keys_values(encoded)

    def add_block(block: Int[Array, ""], log_probs: Float[Array, "batch edges"]) -> Float[Array, "batch edges"]:
        found = _block_log_probs(model, plan, table, keys_values, encoder_mask, block)
        # What stands behind the block's own edges is overwritten by the next.
        return lax.dynamic_update_slice(log_probs, found, (0, arrays.first_edges[block]))

    log_probs = jnp.zeros((encoded.shape[0], arrays.edge_nodes.shape[0]), jnp.float32)
    log_probs = constrain(log_probs, "batch edges", like=encoded)
    log_probs = lax.fori_loop(0, arrays.num_blocks, add_block, log_probs)

    def add_step(step: Int[Array, ""], scores: Float[Array, "batch items"]) -> Float[Array, "batch items"]:
        path = arrays.paths[step]
        # [batch, edges] -> [batch, items]
        return scores + jnp.where(path >= 0, log_probs[:, path], 0.0)

    scores = jnp.zeros((encoded.shape[0], plan.num_items), jnp.float32)
    return lax.fori_loop(0, arrays.paths.shape[0], add_step, constrain(scores, "batch items", like=encoded))


def _block_log_probs(
    model: T5,
    plan: CataloguePlan,
    table: Float[Array, "tokens d_model"],
    keys_values: list[KeysValues],
    encoder_mask: Bool[Array, "batch source"],
    block: Int[Array, ""],
) -> Float[Array, "batch widest"]:
    """The log-probability of every edge of one block, padded to the widest case."""
    arrays = plan.arrays
    length = arrays.tokens.shape[1]
    places = jnp.arange(length)
    # What is below a node stands side by side, right after it: [queries, keys].
    sees = (places[None, :] <= places[:, None]) & (places[:, None] < arrays.ends[block][None, :])
    # One row of tokens for all users.
    hidden = model.decode(
        arrays.tokens[block][None],
        keys_values,
        encoder_mask,
        decoder_mask=sees[None],
        positions=arrays.positions[block][None],
    )
    log_sums = None if plan.over_catalogue else _vocabulary_log_sums(model, hidden)
    first_edge, first_token = arrays.first_edges[block], arrays.first_tokens[block]
    count = arrays.first_edges[block + 1] - first_edge

    def of_width(width: int) -> Float[Array, "batch widest"]:
        nodes = lax.dynamic_slice(arrays.edge_nodes, (first_edge,), (width,))
        children = lax.dynamic_slice(arrays.edge_places, (first_edge,), (width,))
        tokens = lax.dynamic_slice(arrays.block_tokens, (first_token,), (width,))
        # [batch, length, d_model] -> [batch, length, width]
        logits = jnp.einsum("bld,wd->blw", hidden, table[tokens], preferred_element_type=jnp.float32)
        if log_sums is None:
            rows = jnp.where(jnp.arange(width) < count, nodes, length)
            is_child = jnp.zeros((length, width), bool).at[rows, children].set(True, mode="drop")
            # [batch, length, width] -> [batch, length]; -inf at nodes without a choice, where nobody reads.
            normalisers = jax.nn.logsumexp(jnp.where(is_child, logits, -jnp.inf), axis=-1)
        else:
            normalisers = log_sums
        # [batch, length, width] -> [batch, width], an edge each
        found = logits[:, nodes, children] - normalisers[:, nodes]
        return jnp.pad(found, ((0, 0), (0, plan.widths[-1] - width)))

    cases = [partial(of_width, width) for width in plan.widths]
    return lax.switch((count > jnp.asarray(plan.widths)).sum(), cases)


def _vocabulary_log_sums(model: T5, hidden: Float[Array, "batch length d_model"]) -> Float[Array, "batch length"]:
    """The log of the sum of exponentials over the whole vocabulary, for as many positions at once as memory allows."""
    batch, length, d_model = hidden.shape
    most = LOGITS_BYTES[jax.default_backend()] // (4 * model.config.vocab_size * batch)
    size = max(divisor for divisor in range(1, length + 1) if length % divisor == 0 and divisor <= max(1, most))
    # [batch, length, d_model] -> [chunks, batch, size, d_model]
    chunks = jnp.moveaxis(hidden.reshape(batch, -1, size, d_model), 1, 0)
    # [chunks, batch, size] -> [batch, length]
    log_sums = lax.map(lambda chunk: jax.nn.logsumexp(model.logits(chunk), axis=-1), chunks)
    return jnp.moveaxis(log_sums, 0, 1).reshape(batch, length)


def _padded(values: Int[np.ndarray, "*shape"], size: int) -> Int[np.ndarray, "*padded"]:
    """The values as int32, with zeros behind them up to `size`."""
    return np.pad(values, [(0, size - len(values)), *[(0, 0)] * (values.ndim - 1)]).astype(np.int32)


def _round_up(count: int, multiple: int = 0) -> int:
    """Rounds up to a multiple, or to one of 16 sizes per power of two (at most 1/16 more)."""
    step = multiple or 2 ** max(0, count.bit_length() - 5)
    return -(-max(count, 1) // step) * step
