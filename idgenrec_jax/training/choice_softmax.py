"""The softmax over what may be chosen: at each choice over the tokens that continue an ID of the catalogue there.

Logits are computed at choices alone, never for the whole vocabulary:

- at wide choices for all tokens that are chosen anywhere, of which a mask of bits says which may follow;
- at narrow ones for the tokens that may follow there, which are listed.

Where a mask of all choices is small (`data.choices.MASK_LIMIT_BYTES`), all count as wide.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt32

from idgenrec_jax.data.choices import NARROW_CHILDREN, WORD_BITS, Choices, TargetChoices
from idgenrec_jax.models.layers import MASKED_SCORE

_MULTIPLE = 256


class ChoiceTable(NamedTuple):
    """The choices of a catalogue on the devices; sizes are rounded up, so that rounds share a compiled program.

    `tokens` are vocabulary entries. Bit `column % 32` of `mask[row, column // 32]` tells whether `tokens[column]` may
    be chosen there. The row of a choice is its number or, where narrow choices have none, `rows[choice]`. The columns
    that may be chosen at a narrow choice are `children` from `offsets[choice]` up to the next offset.
    """

    tokens: Int[Array | np.ndarray, " columns"]
    mask: UInt32[Array | np.ndarray, "wide words"]
    rows: Int[Array | np.ndarray, " choices"] | None = None
    offsets: Int[Array | np.ndarray, " choices_plus_one"] | None = None
    children: Int[Array | np.ndarray, " children"] | None = None


def choice_table(choices: Choices) -> ChoiceTable:
    """Return the table of a catalogue's choices, still on the host."""
    found = choices.mask()
    columns = _round_up(len(choices.tokens))
    mask = np.zeros((_round_up(len(found)), columns // WORD_BITS), np.uint32)
    mask[: found.shape[0], : found.shape[1]] = found
    table = ChoiceTable(np.pad(choices.tokens, (0, columns - len(choices.tokens))), mask)
    if not choices.is_narrow.any():
        return table
    rows = np.cumsum(~choices.is_narrow, dtype=np.int32) - 1
    further = _round_up(len(rows)) - len(rows)
    return table._replace(
        rows=np.pad(rows, (0, further)),
        offsets=np.pad(choices.offsets, (0, further), mode="edge"),
        children=np.pad(choices.children, (0, _round_up(len(choices.children)) - len(choices.children))),
    )


def choice_cross_entropy(
    hidden: Float[Array, "rows target d_model"],
    table: Float[Array, "vocab d_model"],
    choices: ChoiceTable,
    places: TargetChoices,
) -> Float[Array, " rows"]:
    """Return the negative log-probability of what is chosen in each row, summed over its choices, in nats, float32.

    `hidden` are the decoder's states that predict the target tokens, `table` the output embeddings.
    """
    # [columns, d_model]
    embeddings = jnp.take(table, choices.tokens, axis=0).astype(hidden.dtype)
    total = _of_wide(_states(hidden, places), embeddings, choices, places)
    if places.narrow is not None:
        total = total + _of_narrow(_states(hidden, places.narrow), embeddings, choices, places.narrow)
    return total


def allowed_columns(
    mask: UInt32[Array, "wide words"], rows: Int[Array, "*batch"]
) -> Bool[Array, "*batch columns"]:
    """Return which of the catalogue's tokens may follow, by a choice's row in the mask."""
    bits = (mask[rows][..., None] >> jnp.arange(WORD_BITS, dtype=jnp.uint32)) & 1
    return bits.astype(bool).reshape(*rows.shape, mask.shape[1] * WORD_BITS)


def _states(
    hidden: Float[Array, "rows target d_model"], places: TargetChoices
) -> Float[Array, "rows choices d_model"]:
    return jnp.take_along_axis(hidden, places.positions[..., None], axis=1)


def _of_wide(
    states: Float[Array, "rows choices d_model"],
    embeddings: Float[Array, "columns d_model"],
    choices: ChoiceTable,
    places: TargetChoices,
) -> Float[Array, " rows"]:
    """The loss at wide choices, by the logits of all the catalogue's tokens."""
    nodes = jnp.maximum(places.nodes, 0)
    rows = nodes if choices.rows is None else choices.rows[nodes]
    # [rows, choices, columns]
    logits = jnp.einsum("rcd,vd->rcv", states, embeddings, preferred_element_type=jnp.float32)
    allowed = jnp.where(allowed_columns(jnp.asarray(choices.mask), rows), logits, MASKED_SCORE)
    own = jnp.take_along_axis(logits, places.tokens[..., None], axis=-1)[..., 0]
    return _sum(jax.nn.logsumexp(allowed, axis=-1) - own, places)


def _of_narrow(
    states: Float[Array, "rows choices d_model"],
    embeddings: Float[Array, "columns d_model"],
    choices: ChoiceTable,
    places: TargetChoices,
) -> Float[Array, " rows"]:
    """The loss at narrow choices, by the logits of the tokens that may follow there."""
    assert choices.offsets is not None and choices.children is not None
    nodes = jnp.maximum(places.nodes, 0)
    first, end = choices.offsets[nodes], choices.offsets[nodes + 1]
    # [rows, choices] -> [rows, choices, children]
    entries = first[..., None] + jnp.arange(NARROW_CHILDREN)
    is_child = entries < end[..., None]
    columns = choices.children[jnp.where(is_child, entries, 0)]
    logits = jnp.einsum("rcd,rcwd->rcw", states, embeddings[columns], preferred_element_type=jnp.float32)
    allowed = jnp.where(is_child, logits, MASKED_SCORE)
    is_own = is_child & (columns == places.tokens[..., None])
    own = jnp.where(is_own, logits, 0.0).sum(axis=-1)
    return _sum(jax.nn.logsumexp(allowed, axis=-1) - own, places)


def _sum(losses: Float[Array, "rows choices"], places: TargetChoices) -> Float[Array, " rows"]:
    """The losses of each row together; a free place has none."""
    return jnp.where(places.nodes >= 0, losses, 0.0).sum(axis=1)


def _round_up(count: int) -> int:
    """The smallest multiple that holds so many, and at least one."""
    return -(-max(1, count) // _MULTIPLE) * _MULTIPLE
