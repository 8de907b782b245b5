"""Packed rows: which positions belong to one example, how rows are split into parts, and the loss of their targets."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from idgenrec_jax.models.layers import BatchPart, DropoutKey
from idgenrec_jax.models.t5 import T5, shift_right
from idgenrec_jax.training.vocabulary_cross_entropy import weighted_cross_entropy


def same_segment(
    queries: Int[Array, "rows queries"], keys: Int[Array, "rows keys"]
) -> Bool[Array, "rows queries keys"]:
    """Tell which pairs of positions belong to one example; padding belongs to none."""
    return (queries[:, :, None] == keys[:, None, :]) & (keys > 0)[:, None, :]


def is_real(segments: Int[Array, "rows positions"]) -> Float[Array, "rows positions"]:
    return (segments > 0).astype(jnp.float32)


def count_tokens(segments: Int[Array, "rows positions"]) -> Float[Array, ""]:
    """Return how many positions are not padding."""
    return is_real(segments).sum()


def segment_loss(
    model: T5,
    encoded: Float[Array, "rows source d_model"],
    prompt_segments: Int[Array, "rows source"],
    target_tokens: Int[Array, "rows target"],
    target_segments: Int[Array, "rows target"],
    dropout_key: DropoutKey | None,
    *,
    part: BatchPart | None = None,
) -> Float[Array, ""]:
    """Return the summed cross-entropy of the target tokens, each given the encoded prompt of its segment."""
    start = model.config.decoder_start_token_id
    is_first = target_segments != shift_right(target_segments, 0)
    hidden = model.decode(
        jnp.where(is_first, start, shift_right(target_tokens, start)),
        encoded,
        same_segment(target_segments, prompt_segments),
        decoder_mask=same_segment(target_segments, target_segments),
        dropout_key=dropout_key,
        part=part,
    )
    return weighted_cross_entropy(hidden, model.output_table, target_tokens, is_real(target_segments))


def mean_loss(total: Float[Array, ""], count: Float[Array, ""]) -> Float[Array, ""]:
    """Return a summed cross-entropy per real target token; 0 where there is none."""
    return total / jnp.where(count > 0, count, 1.0)


def split_rows(rows: tuple[Array, ...], chunks: int) -> tuple[Array, ...]:
    """Return arrays of rows [rows, ...] as [chunks, rows / chunks, ...], a device's rows spread over all chunks."""
    return tuple(jnp.swapaxes(values.reshape(-1, chunks, *values.shape[1:]), 0, 1) for values in rows)


def join_rows(values: Array) -> Array:
    """Undo `split_rows`."""
    return jnp.swapaxes(values, 0, 1).reshape(-1, *values.shape[2:])


def split_key(dropout_key: DropoutKey | None) -> tuple[DropoutKey | None, DropoutKey | None]:
    """Return one dropout key for the encoder and one for the decoder, or none for either."""
    if dropout_key is None:
        return None, None
    return jax.random.fold_in(dropout_key, 0), jax.random.fold_in(dropout_key, 1)
