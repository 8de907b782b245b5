"""The recommender's loss: the cross-entropy of the next item's ID given the prompt, over the whole vocabulary.

The recommender's training objective of IDGenRec (arXiv 2403.19021). With h the decoder's hidden states and W the
output embeddings:

    loss = -mean over the target's tokens of log softmax(h W)[token]

The same loss teaches the ID generator to write words for an item's text in the warm start.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from idgenrec_jax.data.packing import SupervisedBatch
from idgenrec_jax.models.layers import BatchPart, DropoutKey
from idgenrec_jax.models.t5 import T5, shift_right
from idgenrec_jax.training.segments import (
    count_tokens,
    decode_targets,
    encode_prompts,
    is_real,
    mean_loss,
    on_device,
    split_key,
)
from idgenrec_jax.training.vocabulary_cross_entropy import weighted_cross_entropy


def recommender_loss(
    model: T5,
    batch: SupervisedBatch,
    dropout_key: DropoutKey | None = None,
    *,
    part: BatchPart | None = None,
    whole: SupervisedBatch | None = None,
) -> Float[Array, ""]:
    """Return the mean cross-entropy of the target tokens given the prompts, in nats per real token.

    Examples that share a row do not see each other. `dropout_key=None` means no dropout. Where `batch` is a `part` of
    the batch `whole`, the mean is over the tokens of that one: the parts' losses add up to its loss.
    """
    encoder_key, decoder_key = split_key(dropout_key)
    read = on_device(batch)
    # [rows, source] -> [rows, source, d_model]
    encoded = encode_prompts(model, read, dropout_key=encoder_key, part=part)
    # [rows, target] -> h: [rows, target, d_model]
    h = decode_targets(model, encoded, read, dropout_key=decoder_key, part=part)
    # -log softmax(h W)[token], summed; the logits [rows, target, vocab] are never stored at once.
    total = weighted_cross_entropy(h, model.output_table, read.target_tokens, is_real(read.target_segments))
    return mean_loss(total, count_tokens(jnp.asarray((batch if whole is None else whole).target_segments)))


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
    return mean_loss(weighted_cross_entropy(hidden, table, targets, weights), weights.sum())
