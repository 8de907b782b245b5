"""Packed rows: which positions belong to one example, how targets are decoded, and how rows are computed in chunks."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from idgenrec_jax.models.layers import BatchPart, DropoutKey
from idgenrec_jax.models.t5 import T5, shift_right


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


def decode_targets(
    model: T5,
    encoded: Float[Array, "rows source d_model"],
    prompt_segments: Int[Array, "rows source"],
    target_tokens: Int[Array, "rows target"],
    target_segments: Int[Array, "rows target"],
    *,
    dropout_key: DropoutKey | None = None,
    part: BatchPart | None = None,
) -> Float[Array, "rows target d_model"]:
    """Return the hidden states that predict the target tokens, each given the encoded prompt of its own segment."""
    start = model.config.decoder_start_token_id
    is_first = target_segments != shift_right(target_segments, 0)
    return model.decode(
        jnp.where(is_first, start, shift_right(target_tokens, start)),
        encoded,
        same_segment(target_segments, prompt_segments),
        decoder_mask=same_segment(target_segments, target_segments),
        dropout_key=dropout_key,
        part=part,
    )


def mean_loss(total: Float[Array, ""], count: Float[Array, ""]) -> Float[Array, ""]:
    """Return a summed cross-entropy per real target token; 0 where there is none."""
    return total / jnp.where(count > 0, count, 1.0)


def split_rows(rows: tuple[Array, ...], chunks: int) -> tuple[Array, ...]:
    """Return arrays of rows [rows, ...] as [chunks, rows / chunks, ...], a device's rows spread over all chunks."""
    return tuple(jnp.swapaxes(values.reshape(-1, chunks, *values.shape[1:]), 0, 1) for values in rows)


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
    compute: Callable[[tuple[Array, ...]], Float[Array, ""]], rows: tuple[Array, ...], chunks: int
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
