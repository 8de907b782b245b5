"""Packed rows: which positions belong to one example, how targets are decoded, and how rows are computed in chunks."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from idgenrec_jax.data.packing import CausalOrder, SupervisedBatch
from idgenrec_jax.models.layers import BatchPart, DropoutKey
from idgenrec_jax.models.t5 import T5, shift_right


def on_device(batch: Any) -> Any:
    """Return a batch whose arrays are JAX's."""
    return jax.tree.map(jnp.asarray, batch)


def same_segment(
    queries: Int[Array, "rows queries"], keys: Int[Array, "rows keys"]
) -> Bool[Array, "rows queries keys"]:
    """Tell which pairs of positions belong to one example; padding belongs to none."""
    return (queries[:, :, None] == keys[:, None, :]) & (keys > 0)[:, None, :]


def is_real(segments: Int[Array, "rows positions"]) -> Float[Array, "rows positions"]:
    """Return 1 where a position holds a token and 0 where it holds padding."""
    return (segments > 0).astype(jnp.float32)


def count_tokens(segments: Int[Array, "rows positions"]) -> Float[Array, ""]:
    """Return how many positions are not padding."""
    return is_real(segments).sum()


def first_of_target(
    segments: Int[Array, "rows target"], order: CausalOrder | None
) -> Bool[Array, "rows target"]:
    """Tell where in a row's targets one begins."""
    is_first = segments != shift_right(segments, 0)
    if order is not None:
        numbers = jnp.asarray(order.target_numbers)
        is_first |= numbers != shift_right(numbers, -1)
    return is_first & (segments > 0)


def count_targets(segments: Int[Array, "rows target"], order: CausalOrder | None) -> Float[Array, ""]:
    """Return how many targets a batch has."""
    return first_of_target(segments, order).astype(jnp.float32).sum()


def same_target(batch: SupervisedBatch) -> Bool[Array, "rows target target"]:
    """Tell which pairs of a row's target tokens belong to one target."""
    read = on_device(batch)
    segments, order = read.target_segments, read.order
    mask = same_segment(segments, segments)
    if order is None:
        return mask
    return mask & (order.target_numbers[:, :, None] == order.target_numbers[:, None, :])


def encode_prompts(
    model: T5,
    batch: SupervisedBatch,
    *,
    dropout_key: DropoutKey | None = None,
    part: BatchPart | None = None,
) -> Float[Array, "rows source d_model"]:
    """Return the encoded prompts of a batch.

    Examples that share a row do not see each other. In a causal history an item sees itself and those before it, and
    what stands behind the history sees all that its target reads.
    """
    read = on_device(batch)
    mask, order = same_segment(read.prompt_segments, read.prompt_segments), read.order
    if order is None:
        return model.encode(read.prompt_tokens, mask, dropout_key=dropout_key, part=part)
    mask = mask & may_read(order.numbers, order.branches, order)
    return model.encode(
        read.prompt_tokens, mask, positions=order.positions, dropout_key=dropout_key, part=part
    )


def decode_targets(
    model: T5,
    encoded: Float[Array, "rows source d_model"],
    batch: SupervisedBatch,
    *,
    dropout_key: DropoutKey | None = None,
    part: BatchPart | None = None,
) -> Float[Array, "rows target d_model"]:
    """Return the hidden states that predict the target tokens, each given the encoded prompt of its own."""
    read = on_device(batch)
    start, segments, order = model.config.decoder_start_token_id, read.target_segments, read.order
    is_first = first_of_target(segments, order)
    prompt_mask = same_segment(segments, read.prompt_segments)
    if order is not None:
        prompt_mask = prompt_mask & may_read(order.target_numbers, order.target_numbers, order)
    return model.decode(
        jnp.where(is_first, start, shift_right(read.target_tokens, start)),
        encoded,
        prompt_mask,
        decoder_mask=same_target(batch),
        dropout_key=dropout_key,
        part=part,
    )


def may_read(
    numbers: Int[Array, "rows queries"], branches: Int[Array, "rows queries"], order: CausalOrder
) -> Bool[Array, "rows queries source"]:
    """Tell which tokens of a window one of this number and branch reads: no later item, and of branches its own."""
    own_numbers, own_branches = jnp.asarray(order.numbers), jnp.asarray(order.branches)
    is_before = own_numbers[:, None, :] <= numbers[:, :, None]
    return is_before & ((own_branches[:, None, :] == 0) | (own_branches[:, None, :] == branches[:, :, None]))


def causal_mask(
    mask: Bool[Array, "rows _ source"], items: Int[Array, "rows source"] | None
) -> Bool[Array, "rows source source"]:
    """Return the mask of prompts of one target each, in which no item of a history sees a later one.

    `items` are the numbers of the items that tokens belong to; None: all see all.
    """
    return mask if items is None else mask & (items[:, None, :] <= items[:, :, None])


def mean_loss(total: Float[Array, ""], count: Float[Array, ""]) -> Float[Array, ""]:
    """Return a summed cross-entropy per real target token, or per target; 0 where there is none."""
    return total / jnp.where(count > 0, count, 1.0)


def split_rows(rows: PyTree, chunks: int) -> PyTree:
    """Return arrays of rows [rows, ...] as [chunks, rows / chunks, ...], a device's rows spread over all chunks."""
    return jax.tree.map(lambda values: jnp.swapaxes(values.reshape(-1, chunks, *values.shape[1:]), 0, 1), rows)


def join_rows(values: Array) -> Array:
    """Undo `split_rows`."""
    return jnp.swapaxes(values, 0, 1).reshape(-1, *values.shape[2:])


def rows_in_chunks(
    compute: Callable[[tuple[Array, ...], DropoutKey | None], PyTree],
    rows: tuple[Array, ...],
    chunks: int,
    dropout_key: DropoutKey | None,
    *,
    remember: tuple[str, ...] = (),
) -> PyTree:
    """Return `compute(rows, dropout_key)`, whose arrays are of rows, one chunk of the rows after the other.

    Every chunk has a dropout key of its own, and is computed once more for the gradient, all but what `checkpoint_name`
    has given a name in `remember`: more time, and the memory of one chunk.
    """
    if chunks == 1:
        return compute(rows, dropout_key)

    def of_chunk(part):
        chunk, chunk_rows = part
        return compute(chunk_rows, None if dropout_key is None else jax.random.fold_in(dropout_key, chunk))

    policy = jax.checkpoint_policies.save_only_these_names(*remember)
    parts = jnp.arange(chunks), split_rows(rows, chunks)
    return jax.tree.map(join_rows, jax.lax.map(jax.checkpoint(of_chunk, policy=policy), parts))


def sum_in_chunks(
    compute: Callable[[PyTree], Float[Array, ""]], rows: PyTree, chunks: int
) -> Float[Array, ""]:
    """Return `compute(rows)`, a sum over the rows, one chunk of them after the other, as in `rows_in_chunks`."""
    if chunks == 1:
        return compute(rows)
    return jax.lax.map(jax.checkpoint(compute), split_rows(rows, chunks)).sum()


def split_key(dropout_key: DropoutKey | None) -> tuple[DropoutKey | None, DropoutKey | None]:
    """Return one dropout key for the encoder and one for the decoder, or none for either."""
    if dropout_key is None:
        return None, None
    return jax.random.fold_in(dropout_key, 0), jax.random.fold_in(dropout_key, 1)
