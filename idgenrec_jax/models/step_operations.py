"""Floating-point operations of one training step as it is computed: padding and what is computed again included.

Only matrix products count, as in `operations`, which counts the work itself. The values of a returned
dictionary add up to the step; they are for all devices together.
"""

import math

from idgenrec_jax.data.choices import NARROW_CHILDREN
from idgenrec_jax.data.id_batches import IdBatch
from idgenrec_jax.data.packing import SupervisedBatch
from idgenrec_jax.models import operations
from idgenrec_jax.models.t5 import T5Config

# Products with the table: scores and mean of the values; then the scores again, and the gradients of the probabilities,
# of the states and of the table's rows.
_SOFT_KEYS, _SOFT_VALUES = 4, 2


def recommender_step_operations(
    config: T5Config, batch: SupervisedBatch, columns: int | None = None
) -> dict[str, int | float]:
    """Return the operations of a recommender or warm-start step on a batch of this shape.

    `columns` is how many tokens of the catalogue are chosen between; None: the loss is over the vocabulary.
    """
    (rows, source), target = batch.prompt_tokens.shape, batch.target_tokens.shape[1]
    blocks = _blocks(config, rows * source, source, rows * target, target, again=False, trained=True)
    return {"layers": blocks, "output table": operations.TRAINING * _output_operations(config, batch, columns)}


def id_step_operations(
    id_generator: T5Config,
    recommender: T5Config,
    batch: IdBatch,
    *,
    id_length: int,
    chunks: int,
    columns: int | None = None,
) -> dict[str, int | float]:
    """Return the operations of an ID step on a batch of this shape.

    `columns` is that of a recommender step, the other arguments are those of `id_loss`.
    """
    (rows, text), places = batch.item_tokens.shape, batch.item_places.shape[1]
    written = rows * places * id_length
    one_token = operations.decoder_operations(
        id_generator, rows * places, max(1, id_length - 1) + 1, text
    ) + operations.output_operations(id_generator, rows * places)
    again = chunks > 1
    soft = 2 * written * id_generator.vocab_size
    (prompt_rows, source), target = batch.prompt_tokens.shape, batch.target_tokens.shape[1]
    targets = prompt_rows * target
    return {
        "ID generator, layers": _blocks(
            id_generator, rows * text, text, written, places * id_length, again=again, trained=True
        ),
        "ID generator, greedy tokens": id_length * one_token,
        "ID generator, soft IDs": soft
        * (
            (_SOFT_KEYS + again) * id_generator.d_model
            + (_SOFT_VALUES + again) * recommender.d_model
        ),
        "recommender, layers": _blocks(
            recommender, prompt_rows * source, source, targets, target, again=again, trained=False
        ),
        "recommender, output table": (operations.FROZEN + again) * _output_operations(recommender, batch, columns),
    }


def _output_operations(config: T5Config, batch: SupervisedBatch | IdBatch, columns: int | None) -> int | float:
    """The operations of a batch's logits: of every target token, or, between so many columns, of every choice."""
    choices = batch.choices
    if columns is None or choices is None:
        return operations.output_operations(config, math.prod(batch.target_tokens.shape))
    wide = operations.output_operations(config, math.prod(choices.nodes.shape), columns)
    if choices.narrow is None:
        return wide
    return wide + operations.output_operations(config, math.prod(choices.narrow.nodes.shape), NARROW_CHILDREN)


def _blocks(
    config: T5Config, read: int, source: int, written: int, target: int, *, again: bool, trained: bool
) -> int | float:
    """The operations of all layers on `read` encoder and `written` decoder positions, gradient included.

    `again`: the whole forward pass is computed a second time.
    """

    def forward(source_length: int, target_length: int, cross_length: int) -> int | float:
        return (
            operations.encoder_operations(config, read, source_length)
            + operations.cross_operations(config, read)
            + operations.decoder_operations(config, written, target_length, cross_length)
        )

    whole = forward(source, target, source)
    # Scores and weighted sums have two factors that a gradient goes to, whether weights are trained or not.
    mixing = whole - forward(0, 0, 0)
    total = operations.TRAINING * whole if trained else operations.FROZEN * whole + mixing
    if config.rematerialise == "layers":
        # A layer's backward pass needs everything that was computed in it but its last product.
        positions = config.num_layers * read + config.num_decoder_layers * written
        total += whole - positions * 2 * config.d_model * config.d_ff
    return total + again * whole
