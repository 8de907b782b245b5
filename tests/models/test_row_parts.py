"""Rows computed in parts give what they give together, gradients too."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from idgenrec_jax.models import row_parts
from idgenrec_jax.models.t5 import T5, T5Config

CONFIG = T5Config(vocab_size=40, d_model=16, d_kv=4, d_ff=24, num_layers=1, num_decoder_layers=1, num_heads=2)
GRAPHDEF, PARAMS = nnx.split(T5(CONFIG, rngs=nnx.Rngs(0)), nnx.Param)
TOKENS = jax.random.randint(jax.random.key(1), (6, 5), 2, 40)
LENGTHS = jnp.asarray([5, 3, 4, 1, 5, 2])[:, None] > jnp.arange(5)
SEGMENTS = jnp.asarray([[1, 1, 2, 2, 2]] * 6)
MASKS = {"of positions": LENGTHS, "of pairs": SEGMENTS[:, :, None] == SEGMENTS[:, None, :]}


def encode_and_start(params, mask):
    """The encoder's states, and the keys and values that the decoder keeps of them."""
    model = nnx.merge(GRAPHDEF, params)
    encoded = model.encode(TOKENS, mask)
    cache = model.start_decoding(encoded, mask if mask.ndim == 2 else mask[:, :2], num_beams=2, max_length=3)
    return encoded, (cache.cross_keys, cache.cross_values)


def results(mask):
    """How many loops there are, and what they give; traced anew at each call."""

    def forward(params):
        return encode_and_start(params, mask)

    def loss(params):
        encoded, (keys, _) = encode_and_start(params, mask)
        return jnp.sum(encoded**2) + sum(jnp.sum(jnp.sin(array)) for array in keys)

    loops = str(jax.make_jaxpr(forward)(PARAMS)).count("scan[")
    return loops, (jax.jit(forward)(PARAMS), jax.jit(jax.grad(loss))(PARAMS))


@pytest.mark.parametrize("mask", MASKS)
def test_parts_give_what_the_whole_gives(mask, monkeypatch):
    loops, whole = results(MASKS[mask])
    assert loops == 0
    monkeypatch.setattr(row_parts, "PART_BYTES", 2 * 5 * 16 * 4)
    loops, parts = results(MASKS[mask])
    assert loops == 2
    for found, expected in zip(jax.tree.leaves(parts), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_rows_with_dropout_are_computed_together(monkeypatch):
    monkeypatch.setattr(row_parts, "PART_BYTES", 2 * 5 * 16 * 4)

    def encode(params):
        return nnx.merge(GRAPHDEF, params).encode(TOKENS, LENGTHS, dropout_key=jax.random.key(0))

    assert "scan[" not in str(jax.make_jaxpr(encode)(PARAMS))


@pytest.mark.parametrize(
    ("batch", "row_bytes", "expected"),
    [(64, 2**19, 4), (64, 2**13, 64), (25, 344 * 2048, 5), (97, 2**17, 97), (8, 2**24, 1)],
)
def test_the_rows_of_a_part_divide_the_batch(batch, row_bytes, expected):
    assert row_parts._rows_of_part(batch, row_bytes) == expected
