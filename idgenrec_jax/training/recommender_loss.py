"""The recommender's loss: the mean cross-entropy of the target tokens given the prompts."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from idgenrec_jax.data.packing import SupervisedBatch
from idgenrec_jax.models.layers import BatchPart, DropoutKey
from idgenrec_jax.models.t5 import T5, shift_right
from idgenrec_jax.training.segments import count_tokens, mean_loss, same_segment, segment_loss, split_key, split_rows
from idgenrec_jax.training.vocabulary_cross_entropy import weighted_cross_entropy


def recommender_loss(
    model: T5,
    batch: SupervisedBatch,
    dropout_key: DropoutKey | None = None,
    *,
    part: BatchPart | None = None,
    num_tokens: Float[Array, ""] | None = None,
) -> Float[Array, ""]:
    """Return the mean cross-entropy of the target tokens given the prompts, in nats per real token.

    Examples that share a row do not see each other. `dropout_key=None` means no dropout. Where `batch` is a `part` of
    a larger one, as from `split_batch`, the mean is over the `num_tokens` tokens of that one: the parts' losses add up.
    """
    encoder_key, decoder_key = split_key(dropout_key)
    segments = batch.prompt_segments
    encoded = model.encode(batch.prompt_tokens, same_segment(segments, segments), dropout_key=encoder_key, part=part)
    total = segment_loss(
        model, encoded, segments, batch.target_tokens, batch.target_segments, decoder_key, part=part
    )
    return mean_loss(total, count_tokens(batch.target_segments) if num_tokens is None else num_tokens)


def split_batch(batch: SupervisedBatch, parts: int) -> SupervisedBatch:
    """Return the batch with its arrays as [parts, rows / parts, ..], each part the rows of a `BatchPart`."""
    return SupervisedBatch(*split_rows(batch, parts))


def target_loss(
    model: T5,
    encoded: Float[Array, "batch source d_model"],
    encoder_mask: Bool[Array, "batch source"],
    target_tokens: Int[Array, "batch target"],
    target_mask: Bool[Array, "batch target"],
) -> Float[Array, ""]:
    """Return the mean cross-entropy of the targets given encoded prompts, in nats per real token, one example a row."""
    decoder_inputs = shift_right(target_tokens, model.config.decoder_start_token_id)
    hidden = model.decode(decoder_inputs, encoded, encoder_mask)
    return token_cross_entropy(hidden, model.output_table, target_tokens, target_mask.astype(jnp.float32))


def token_cross_entropy(
    hidden: Float[Array, "batch target d_model"],
    table: Float[Array, "vocab d_model"],
    targets: Int[Array, "batch target"],
    weights: Float[Array, "batch target"],
) -> Float[Array, ""]:
    """Return the weighted mean of the tokens' negative log-likelihoods in nats, float32; 0 where all weights are 0.

    The logits are `hidden @ table.T`.
    """
    total = weights.sum()
    return weighted_cross_entropy(hidden, table, targets, weights) / jnp.where(total > 0, total, 1.0)
