"""The recommender's loss over the catalogue: the negative log-probability of the next item, in nats per item.

Where the targets of the catalogue leave no choice, the next token is certain. With h the decoder's hidden states where
they leave one, C the tokens that may follow there, and W the output embeddings:

    log p(item) = sum over the choices on its way of  (h W)[token] - log sum over C of exp (h W)
    loss        = -mean over targets of log p(item)

The probabilities of all items sum to one, so that the loss is comparable with any other recommender's.
"""

from jaxtyping import Array, Bool, Float, Int

from idgenrec_jax.data.choices import TargetChoices
from idgenrec_jax.data.packing import SupervisedBatch
from idgenrec_jax.models.layers import BatchPart, DropoutKey
from idgenrec_jax.models.t5 import T5, shift_right
from idgenrec_jax.training.choice_softmax import ChoiceTable, choice_cross_entropy
from idgenrec_jax.training.segments import (
    count_targets,
    decode_targets,
    encode_prompts,
    mean_loss,
    on_device,
    split_key,
)


def catalogue_loss(
    model: T5,
    batch: SupervisedBatch,
    dropout_key: DropoutKey | None = None,
    *,
    choices: ChoiceTable,
    part: BatchPart | None = None,
    whole: SupervisedBatch | None = None,
) -> Float[Array, ""]:
    """Return the mean negative log-probability of the targets given their prompts, in nats per item.

    `choices` are those of the catalogue. The other arguments are those of `recommender_loss`.
    """
    encoder_key, decoder_key = split_key(dropout_key)
    read = on_device(batch)
    # [rows, source] -> [rows, source, d_model]
    encoded = encode_prompts(model, read, dropout_key=encoder_key, part=part)
    # [rows, target] -> h: [rows, target, d_model]
    h = decode_targets(model, encoded, read, dropout_key=decoder_key, part=part)
    total = choice_cross_entropy(h, model.output_table, choices, read.choices).sum()
    counted = read if whole is None else on_device(whole)
    return mean_loss(total, count_targets(counted.target_segments, counted.order))


def held_out_losses(
    model: T5,
    encoded: Float[Array, "batch source d_model"],
    encoder_mask: Bool[Array, "batch source"],
    target_tokens: Int[Array, "batch target"],
    target_choices: TargetChoices,
    choices: ChoiceTable,
) -> Float[Array, " batch"]:
    """Return the negative log-probability of each row's target given its encoded prompt, in nats."""
    decoder_inputs = shift_right(target_tokens, model.config.decoder_start_token_id)
    hidden = model.decode(decoder_inputs, encoded, encoder_mask)
    return choice_cross_entropy(hidden, model.output_table, choices, target_choices)
