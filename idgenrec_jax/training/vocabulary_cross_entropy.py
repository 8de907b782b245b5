"""Cross-entropy over the whole vocabulary, a few tokens at a time: the logits [tokens, vocab] are never stored at once.

Loss and gradients are made in one pass: while a chunk's logits are in the cache, its share of both gradients is taken,
so that the backward pass has nothing left but to scale them. That is three products with the table, the fewest there
are; reading the logits twice, once a pass, takes four. At 512 tokens of width 128 and 32,128 words, value and gradients
took 97 ms on two CPU cores, against 135 ms in two passes over blocks of the vocabulary and 152 ms by way of the logits.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from idgenrec_jax.training.vocabulary_attention import product

CPU_CHUNK_BYTES = 16 * 2**20
"""Logits of one chunk on a CPU: about what its cache holds."""

ACCELERATOR_CHUNK_BYTES = 512 * 2**20
"""Logits of one chunk elsewhere: enough for full matrix units."""


def weighted_cross_entropy(
    hidden: Float[Array, "batch target d_model"],
    table: Float[Array, "vocab d_model"],
    targets: Int[Array | np.ndarray, "batch target"],
    weights: Float[Array | np.ndarray, "batch target"],
    *,
    chunk_tokens: int | None = None,
    skip: bool | None = None,
) -> Float[Array, ""]:
    """Return the sum over tokens of weight * negative log-likelihood in nats, float32; the logits are hidden @ table.T.

    Products are taken in the dtype of `hidden` and summed in float32. Gradients flow to `hidden` and `table`. Tokens of
    weight 0 count for nothing, whatever they hold. `chunk_tokens` is about how many tokens are read at once; None
    chooses by the memory of the backend. With `skip`, tokens of weight 0 are moved behind the others and left out;
    None does so on one device only, since the move would gather a batch that is split over several.
    """
    if chunk_tokens is None:
        chunk_bytes = CPU_CHUNK_BYTES if jax.default_backend() == "cpu" else ACCELERATOR_CHUNK_BYTES
        chunk_tokens = max(1, chunk_bytes // (4 * table.shape[0]))
    if skip is None:
        skip = jax.device_count() == 1
    targets, weights = jnp.asarray(targets), jnp.asarray(weights)
    hidden = jnp.where(weights[..., None] > 0, hidden, 0.0)
    arrange = _without_padding if skip else _by_position
    return _total(*arrange(hidden, targets, weights, chunk_tokens), table)


def _without_padding(hidden, targets, weights, chunk_tokens):
    """Return chunks of tokens, those of weight 0 last, and the number of chunks that hold any other."""
    tokens = targets.size
    chunk_tokens = min(chunk_tokens, tokens)
    num_chunks = -(-tokens // chunk_tokens)
    order = jnp.argsort(weights.reshape(-1) == 0, stable=True)
    filled = num_chunks * chunk_tokens - tokens

    def chunks(values, *rest):
        values = values.reshape(tokens, *rest)[order]
        return jnp.pad(values, [(0, filled)] + [(0, 0)] * len(rest)).reshape(num_chunks, chunk_tokens, *rest)

    used = -(-(weights > 0).sum() // chunk_tokens)
    return used, chunks(hidden, hidden.shape[-1]), chunks(targets), chunks(weights)


def _by_position(hidden, targets, weights, chunk_tokens):
    """Return chunks of a few positions of every row, so that a batch split by rows stays split; and their number."""
    batch, length = targets.shape
    wanted = max(1, min(length, chunk_tokens // batch))
    positions = max(width for width in range(1, wanted + 1) if length % width == 0)

    def chunks(values, *rest):
        split = values.reshape(batch, length // positions, positions, *rest)
        return jnp.swapaxes(split, 0, 1).reshape(length // positions, batch * positions, *rest)

    return jnp.int32(length // positions), chunks(hidden, hidden.shape[-1]), chunks(targets), chunks(weights)


@jax.custom_vjp
def _total(
    used: Int[Array, ""],
    hidden: Float[Array, "chunks tokens d_model"],
    targets: Int[Array, "chunks tokens"],
    weights: Float[Array, "chunks tokens"],
    table: Float[Array, "vocab d_model"],
) -> Float[Array, ""]:
    """Return the weighted sum over the first `used` chunks, without any work for gradients."""

    def read(index, total):
        loss, *_ = _read_chunk(hidden[index], targets[index], weights[index], table)
        return total + loss

    return jax.lax.fori_loop(0, used, read, jnp.zeros((), jnp.float32))


def _read_chunk(hidden, targets, weights, table):
    """Return a chunk's loss, its exponentials [tokens, vocab], their sums, and the rows of its targets."""
    logits = product(hidden, table)
    maximum = logits.max(axis=-1)
    exponentials = jnp.exp(logits - maximum[:, None])
    totals = exponentials.sum(axis=-1)
    rows = table[targets].astype(hidden.dtype)
    own = jnp.einsum("td,td->t", hidden, rows, preferred_element_type=jnp.float32)
    loss = (weights * (maximum + jnp.log(totals) - own)).sum()
    return loss, exponentials, totals, rows


def _forward(used, hidden, targets, weights, table):
    """Return the sum, and as residuals its finished gradients in float32.

    The gradient of a token's logits is weight * (probability - is_target).
    """

    def read(index, carry):
        total, hidden_gradient, table_gradient = carry
        chunk, chunk_weights = hidden[index], weights[index]
        loss, exponentials, totals, rows = _read_chunk(chunk, targets[index], chunk_weights, table)
        scale = (chunk_weights / totals)[:, None]
        exponentials = exponentials.astype(chunk.dtype)
        mean_row = scale * product(exponentials, table.T)
        gradient = mean_row - chunk_weights[:, None] * rows.astype(jnp.float32)
        # Transposed: otherwise XLA's CPU compiler transposes the exponentials, the larger factor.
        table_gradient = table_gradient + product((scale * chunk).astype(chunk.dtype).T, exponentials.T)
        return total + loss, hidden_gradient.at[index].set(gradient), table_gradient

    initial = (
        jnp.zeros((), jnp.float32),
        jnp.zeros(hidden.shape, jnp.float32),
        jnp.zeros(table.shape[::-1], jnp.float32),
    )
    total, hidden_gradient, table_gradient = jax.lax.fori_loop(0, used, read, initial)
    own = -weights[..., None] * hidden.astype(jnp.float32)
    table_gradient = table_gradient.T.at[targets.reshape(-1)].add(own.reshape(math.prod(targets.shape), -1))
    return total, (hidden_gradient.astype(hidden.dtype), table_gradient.astype(table.dtype))


def _backward(residuals, gradient):
    """Return the gradients, scaled by that of the sum; the weights are constants."""
    hidden_gradient, table_gradient = residuals
    scaled = (gradient.astype(hidden_gradient.dtype) * hidden_gradient, gradient * table_gradient)
    return None, scaled[0], None, None, scaled[1]


_total.defvjp(_forward, _backward)
