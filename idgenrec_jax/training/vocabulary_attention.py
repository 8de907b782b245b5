"""Soft token embeddings, `softmax(hidden @ keys.T) @ values`, as attention over the vocabulary.

The softmax over a vocabulary of 32,128 tokens is read block by block with a running maximum and sum, as
flash-attention reads its keys, so that the [tokens, vocab] matrix exists neither in the forward nor in the backward
pass. See `id_loss`.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

DEFAULT_BLOCK_SIZE = 4096
"""Rows of the vocabulary that are read at once."""


def dense_soft_embedding(
    hidden: Float[Array, "tokens d_model"],
    keys: Float[Array, "vocab d_model"],
    values: Float[Array, "vocab d_embed"],
) -> Float[Array, "tokens d_embed"]:
    """Compute the soft embeddings by way of the full [tokens, vocab] probabilities, for small vocabularies.

    Returns float32; no gradient reaches `values`.
    """
    # [tokens, d_model] -> [tokens, vocab] -> [tokens, d_embed]
    probabilities = jax.nn.softmax(product(hidden, keys), axis=-1)
    return product(probabilities.astype(hidden.dtype), jax.lax.stop_gradient(values).T)


def soft_embedding(
    hidden: Float[Array, "*tokens d_model"],
    keys: Float[Array, "vocab d_model"],
    values: Float[Array, "vocab d_embed"],
    *,
    block_size: int = DEFAULT_BLOCK_SIZE,
) -> Float[Array, "*tokens d_embed"]:
    """Compute the probability-weighted mean of `values` per token, one block of the vocabulary at a time.

    Equal to `dense_soft_embedding`, in value and in the gradients of `hidden` and `keys`; no gradient reaches
    `values`. The largest temporary is [tokens, block_size]. Products are taken in the dtype of `hidden` and summed in
    float32; the result is float32. The vocabulary need not be a multiple of `block_size`.

    Raises ValueError when `block_size` is not positive.
    """
    if block_size < 1:
        raise ValueError(f"block_size is {block_size}, expected at least 1")
    vocab = keys.shape[0]
    num_blocks = -(-vocab // block_size)
    flat = _blockwise(-(-vocab // num_blocks), hidden.reshape(-1, hidden.shape[-1]), keys, values)
    return flat.reshape(*hidden.shape[:-1], -1)


def product(
    left: Float[Array, "rows inner"], right: Float[Array, "columns inner"]
) -> Float[Array, "rows columns"]:
    """Multiply `left` by the transpose of `right` in the dtype of `left`, summed in float32."""
    return jnp.einsum("ri,ci->rc", left, right.astype(left.dtype), preferred_element_type=jnp.float32)


def block_start(index: Int[Array, ""], block_size: int, vocab: int) -> Int[Array, ""]:
    """Return the first row of block `index`; the last block is moved back so that it ends at the vocabulary's end.

    Equal blocks that overlap at the end need one loop body and no padded copy of the tables.
    """
    return jnp.minimum(index * block_size, vocab - block_size)


def block_logits(
    hidden: Float[Array, "tokens d_model"],
    key_block: Float[Array, "block d_model"],
    index: Int[Array, ""],
    start: Int[Array, ""],
    vocab: int,
) -> Float[Array, "tokens block"]:
    """Return the logits of one block, minus infinity where an earlier block has read the token already."""
    block_size = key_block.shape[0]
    if vocab % block_size == 0:
        return product(hidden, key_block)
    fresh: Bool[Array, " block"] = start + jnp.arange(block_size) >= index * block_size
    return jnp.where(fresh[None, :], product(hidden, key_block), -jnp.inf)


def _forward(
    block_size: int,
    hidden: Float[Array, "tokens d_model"],
    keys: Float[Array, "vocab d_model"],
    values: Float[Array, "vocab d_embed"],
) -> tuple[Float[Array, "tokens d_embed"], Float[Array, " tokens"]]:
    """Return the soft embeddings and the log of each token's softmax denominator, both float32."""
    tokens, vocab = hidden.shape[0], keys.shape[0]

    def read_block(index, carry):
        maximum, total, weighted = carry
        start = block_start(index, block_size, vocab)
        key_block = jax.lax.dynamic_slice_in_dim(keys, start, block_size)
        value_block = jax.lax.dynamic_slice_in_dim(values, start, block_size)
        logits = block_logits(hidden, key_block, index, start, vocab)
        new_maximum = jnp.maximum(maximum, logits.max(axis=-1))
        rescale = jnp.exp(maximum - new_maximum)
        exponentials = jnp.exp(logits - new_maximum[:, None])
        total = total * rescale + exponentials.sum(axis=-1)
        contribution = product(exponentials.astype(hidden.dtype), value_block.T)
        return new_maximum, total, weighted * rescale[:, None] + contribution

    initial = (
        jnp.full((tokens,), -jnp.inf, jnp.float32),
        jnp.zeros((tokens,), jnp.float32),
        jnp.zeros((tokens, values.shape[1]), jnp.float32),
    )
    maximum, total, weighted = jax.lax.fori_loop(0, -(-vocab // block_size), read_block, initial)
    return weighted / total[:, None], maximum + jnp.log(total)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _blockwise(block_size, hidden, keys, values):
    """Return the soft embeddings; see `soft_embedding`."""
    return _forward(block_size, hidden, keys, values)[0]


def _blockwise_forward(block_size, hidden, keys, values):
    """Return the soft embeddings and what the backward pass needs: nothing of the size [tokens, vocab]."""
    output, log_total = _forward(block_size, hidden, keys, values)
    return output, (hidden, keys, values, output, log_total)


def _blockwise_backward(block_size, residuals, gradient):
    """Return the gradients of `hidden` and `keys`, recomputing each block's probabilities.

    With p the probabilities and g the incoming gradient, the gradient of the logits is p * (g . value - g . output).
    """
    hidden, keys, values, output, log_total = residuals
    vocab = keys.shape[0]
    gradient_of_mean = (gradient * output).sum(axis=-1)
    # Products follow the compute dtype of `hidden`, as in the forward pass; the sums stay float32.
    gradient = gradient.astype(hidden.dtype)

    def read_block(index, carry):
        hidden_gradient, keys_gradient = carry
        start = block_start(index, block_size, vocab)
        key_block = jax.lax.dynamic_slice_in_dim(keys, start, block_size)
        value_block = jax.lax.dynamic_slice_in_dim(values, start, block_size)
        logits = block_logits(hidden, key_block, index, start, vocab)
        probabilities = jnp.exp(logits - log_total[:, None])
        logits_gradient = probabilities * (product(gradient, value_block) - gradient_of_mean[:, None])
        logits_gradient = logits_gradient.astype(hidden.dtype)
        hidden_gradient = hidden_gradient + product(logits_gradient, key_block.T)
        # The rows that the moved last block shares with the block before have probability zero here: add, not set.
        # Transposed: otherwise XLA's CPU compiler transposes the logits' gradient, the larger factor.
        block_gradient = product(hidden.T, logits_gradient.T)
        seen = jax.lax.dynamic_slice_in_dim(keys_gradient, start, block_size, axis=1)
        keys_gradient = jax.lax.dynamic_update_slice_in_dim(keys_gradient, seen + block_gradient, start, axis=1)
        return hidden_gradient, keys_gradient

    initial = (jnp.zeros(hidden.shape, jnp.float32), jnp.zeros(keys.shape[::-1], jnp.float32))
    hidden_gradient, keys_gradient = jax.lax.fori_loop(0, -(-vocab // block_size), read_block, initial)
    return hidden_gradient.astype(hidden.dtype), keys_gradient.T.astype(keys.dtype), None


_blockwise.defvjp(_blockwise_forward, _blockwise_backward)
