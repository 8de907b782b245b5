"""The softmax over what may be chosen: at each choice over the tokens that continue an ID of the catalogue there.

Logits are computed at choices alone, and only for the tokens that are chosen anywhere: [choices of a batch, tokens of
the catalogue], never the whole vocabulary. A mask of bits says which of them may follow.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt32

from idgenrec_jax.data.choices import WORD_BITS, Choices, TargetChoices
from idgenrec_jax.models.layers import MASKED_SCORE

TOKEN_MULTIPLE = 256
NODE_MULTIPLE = 256


class ChoiceTable(NamedTuple):
    """The choices of a catalogue on the devices; sizes are rounded up, so that rounds share a compiled program.

    `tokens` are vocabulary entries. Bit `column % 32` of `mask[choice, column // 32]` tells whether `tokens[column]`
    may be chosen there.
    """

    tokens: Int[Array | np.ndarray, " columns"]
    mask: UInt32[Array | np.ndarray, "choices words"]


def choice_table(choices: Choices) -> ChoiceTable:
    """Return the table of a catalogue's choices, still on the host."""
    columns = _round_up(max(1, len(choices.tokens)), TOKEN_MULTIPLE)
    rows = _round_up(max(1, choices.num_choices), NODE_MULTIPLE)
    mask = np.zeros((rows, columns // WORD_BITS), np.uint32)
    found = choices.mask()
    mask[: found.shape[0], : found.shape[1]] = found
    return ChoiceTable(np.pad(choices.tokens, (0, columns - len(choices.tokens))), mask)


def choice_cross_entropy(
    hidden: Float[Array, "rows target d_model"],
    table: Float[Array, "vocab d_model"],
    choices: ChoiceTable,
    places: TargetChoices,
) -> Float[Array, "rows choices"]:
    """Return the negative log-probability of what is chosen in each place, in nats, float32; 0 in a free place.

    `hidden` are the decoder's states that predict the target tokens, `table` the output embeddings.
    """
    # [rows, target, d_model] -> [rows, choices, d_model]
    states = jnp.take_along_axis(hidden, places.positions[..., None], axis=1)
    # [columns, d_model]
    embeddings = jnp.take(table, choices.tokens, axis=0)
    return _cross_entropy(states, embeddings, choices.mask, places.nodes, places.tokens)


def allowed_columns(
    mask: UInt32[Array, "choices words"], nodes: Int[Array, "*batch"]
) -> Bool[Array, "*batch columns"]:
    """Return which of the catalogue's tokens may follow at each choice; none for a node of -1."""
    words = jnp.where((nodes >= 0)[..., None], mask[jnp.maximum(nodes, 0)], 0)
    bits = (words[..., None] >> jnp.arange(WORD_BITS, dtype=jnp.uint32)) & 1
    return bits.astype(bool).reshape(*nodes.shape, -1)


def _cross_entropy(states, embeddings, mask, nodes, chosen):
    is_choice = nodes >= 0
    # [rows, choices, columns]
    logits = jnp.einsum(
        "rcd,vd->rcv", states, embeddings.astype(states.dtype), preferred_element_type=jnp.float32
    )
    masked = jnp.where(allowed_columns(mask, nodes), logits, MASKED_SCORE)
    own = jnp.take_along_axis(logits, chosen[..., None], axis=-1)[..., 0]
    return jnp.where(is_choice, jax.nn.logsumexp(masked, axis=-1) - own, 0.0)


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
