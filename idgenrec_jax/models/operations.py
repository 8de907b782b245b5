"""Floating-point operations and bytes that the work needs whoever does it, from shapes alone.

A multiplication with its addition counts as two operations. Only matrix products count; softmax, norms and dropout are
small beside them. Training costs three times the forward pass: the backward pass has two products for each of it; one,
where the weights are frozen. Of the bytes, only those of weights, gradients, moments and encoder keys count: what else
moves between memory and processor depends on who does it.
"""

import jax.numpy as jnp

from idgenrec_jax.models.t5 import T5Config

TRAINING = 3
FROZEN = 2


def encoder_operations(config: T5Config, tokens: int | float, length: int | float) -> int | float:
    """Return the operations of encoding `tokens` tokens in sequences of mean `length`."""
    return config.num_layers * tokens * (_attention(config) + _feed_forward(config) + _mixing(config, length))


def cross_operations(config: T5Config, tokens: int | float) -> int | float:
    """Return the operations of the decoder's keys and values for `tokens` encoded tokens."""
    return config.num_decoder_layers * tokens * 2 * 2 * config.d_model * _inner(config)


def decoder_operations(config: T5Config, tokens: int | float, length: int | float, source: int | float) -> int | float:
    """Return the operations of `tokens` decoder positions in sequences of mean `length`, each beside `source` tokens.

    Keys and values of the encoder's output are not in it (see `cross_operations`), nor is the output table.
    """
    cross = 2 * 2 * config.d_model * _inner(config) + _mixing(config, source)
    one = _attention(config) + _mixing(config, length) + cross + _feed_forward(config)
    return config.num_decoder_layers * tokens * one


def tree_operations(
    config: T5Config,
    *,
    positions: int | float,
    outputs: int | float,
    edges: int | float,
    length: int | float,
    source: int | float,
) -> int | float:
    """Return the operations of scoring every item for one user, by one decoder pass over the tree of prefixes.

    `positions` are its nodes, each with `length` ancestors on average, itself counted. `outputs` of them have edges
    with a probability, `edges` in all: other states are not needed after the last block's keys and values. What the
    first block does before it meets the user's encoding is the same for all users, and is left out as keys and values
    of the encoding are (see `cross_operations`).
    """
    product = 2 * config.d_model * _inner(config)
    met = _mixing(config, source) + product + _feed_forward(config)
    logits = edges * 2 * config.d_model
    if config.num_decoder_layers == 1:
        return outputs * met + logits
    one = _attention(config) + _mixing(config, length) + product + met
    between = (config.num_decoder_layers - 2) * positions * one
    return positions * met + between + positions * 2 * product + outputs * (one - 2 * product) + logits


def output_operations(config: T5Config, tokens: int | float, columns: int | None = None) -> int | float:
    """Return the operations of the logits of `columns` vocabulary entries (None: all) for `tokens` positions."""
    return tokens * 2 * config.d_model * (config.vocab_size if columns is None else columns)


def decoding_bytes(
    config: T5Config, *, steps: int | float, users: int, source: int | float, columns: int | None = None
) -> int | float:
    """Return the bytes read by `steps` decoding steps of a batch of `users` users with `source` encoded tokens each.

    Every step reads the decoder's weights, the output table and the users' encoder keys and values, once for all beams.
    `columns` is how many rows of the table are read (None: all).
    """
    attention, feed_forward = _attention(config) // 2, _feed_forward(config) // 2
    rows = config.vocab_size if columns is None else columns
    weights = config.num_decoder_layers * (2 * attention + feed_forward) + rows * config.d_model
    keys = users * source * 2 * config.num_decoder_layers * _inner(config)
    return steps * (weights + keys) * jnp.dtype(config.compute_dtype).itemsize


def training_bytes(config: T5Config, steps: int) -> int:
    """Return the bytes moved by `steps` training steps for float32 parameters.

    Weights are read forward and backward, gradients written and read; AdamW reads and writes weights and both moments.
    """
    return steps * parameter_count(config) * 4 * (2 + 2 + 6)


def parameter_count(config: T5Config) -> int:
    """Return the number of parameters in matrices; norm scales and position biases are left out."""
    attention, feed_forward = _attention(config) // 2, _feed_forward(config) // 2
    encoder = config.num_layers * (attention + feed_forward)
    decoder = config.num_decoder_layers * (2 * attention + feed_forward)
    tables = 1 if config.tie_word_embeddings else 2
    return encoder + decoder + tables * config.vocab_size * config.d_model


def _inner(config: T5Config) -> int:
    return config.num_heads * config.d_kv


def _attention(config: T5Config) -> int:
    """Queries, keys, values and output of one token in one layer."""
    return 2 * 4 * config.d_model * _inner(config)


def _feed_forward(config: T5Config) -> int:
    matrices = 3 if config.feed_forward == "gated-gelu" else 2
    return 2 * matrices * config.d_model * config.d_ff


def _mixing(config: T5Config, length: int | float) -> int | float:
    """Scores and weighted sum of one query over `length` keys in one layer."""
    return 2 * 2 * length * _inner(config)
