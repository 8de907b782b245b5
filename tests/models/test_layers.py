"""The layers under T5, one at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from idgenrec_jax.models.layers import (
    Attention,
    BatchPart,
    Dropout,
    Embedding,
    RelativePositionBias,
    RMSNorm,
    distance_buckets,
    position_words,
)


@pytest.mark.parametrize("kind", ["threefry2x32", "rbg"])
def test_dropout_rate_scale_and_keys(kind):
    key = jax.random.key(3, impl=kind)
    inputs = jnp.ones((301, 1001))
    dropout = Dropout(0.1, key)
    first, second = dropout(inputs), dropout(inputs)
    dropped = float(jnp.mean(first == 0))
    # The standard error of the mean is 0.00055.
    assert dropped == pytest.approx(0.1, abs=0.003)
    np.testing.assert_allclose(jnp.unique(first), [0, 1 / 0.9], rtol=1e-6)
    assert float(jnp.mean(first)) == pytest.approx(1.0, abs=0.003)
    # Independent masks agree on 1 - 2 p (1 - p) of the elements.
    assert float(jnp.mean(first == second)) == pytest.approx(1 - 2 * dropped * (1 - dropped), abs=0.005)
    np.testing.assert_array_equal(Dropout(0.1, key)(inputs), first)
    # No two columns repeat each other.
    assert np.abs(np.corrcoef(np.asarray(first[:, :12]).T) - np.eye(12)).max() < 0.3


def test_dropout_without_key_or_rate_is_the_identity():
    inputs = jnp.arange(6.0).reshape(2, 3)
    assert Dropout(0.5, None)(inputs) is inputs
    assert Dropout(0.0, jax.random.key(0))(inputs) is inputs


@pytest.mark.parametrize("rate", [0.0001, 0.25, 0.5, 0.9999])
def test_dropout_rate(rate):
    dropped = jnp.mean(Dropout(rate, jax.random.key(0))(jnp.ones((1000, 1000))) == 0)
    # Four standard errors of a million draws.
    assert float(dropped) == pytest.approx(rate, abs=4 * (rate * (1 - rate)) ** 0.5 / 1000)


def test_a_part_of_a_batch_has_the_masks_that_its_rows_have_in_the_whole():
    inputs = jnp.ones((6, 5, 7))
    whole = Dropout(0.3, jax.random.key(4))(inputs)
    for index in range(3):
        part = BatchPart(jnp.int32(index), 3)
        np.testing.assert_array_equal(Dropout(0.3, jax.random.key(4), part)(inputs[index::3]), whole[index::3])
    assert not np.array_equal(whole[0::3], whole[1::3])


def test_dropout_keeps_the_dtype_and_passes_gradients_through_kept_elements():
    inputs = jnp.linspace(1, 2, 4000, dtype=jnp.bfloat16).reshape(2, -1)
    key = jax.random.key(0)
    output = Dropout(0.25, key)(inputs)
    assert output.dtype == jnp.bfloat16
    gradient = jax.grad(lambda inputs: jnp.sum(Dropout(0.25, key)(inputs)).astype(jnp.float32))(inputs)
    np.testing.assert_array_equal(gradient, jnp.where(output == 0, 0, jnp.bfloat16(1 / 0.75)))


def test_position_words_are_uniform_and_independent():
    """Every bit is fair, successive words do not go together, and neighbouring seeds give unrelated words."""
    first, second = jnp.uint32(7), jnp.uint32(9)
    words = np.asarray(position_words(first, second, (512, 1024)))
    bits = (words[..., None] >> np.arange(32, dtype=np.uint32)) & 1
    assert np.abs(bits.mean(axis=(0, 1)) - 0.5).max() < 0.004
    assert np.abs(np.corrcoef(bits.reshape(-1, 32).T) - np.eye(32)).max() < 0.01
    values = words / 2.0**32
    for one, other in ((values[:, 1:], values[:, :-1]), (values[1:], values[:-1])):
        assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 0.006
    for seeds in ((first + 1, second), (first, second + 1)):
        assert abs(np.corrcoef(np.asarray(position_words(*seeds, words.shape)).ravel(), words.ravel())[0, 1]) < 0.006


@pytest.mark.parametrize(("buckets", "distance"), [(32, 128), (16, 128), (8, 14), (6, 100), (64, 512)])
def test_buckets_equal_transformers_at_every_distance(buckets, distance):
    torch = pytest.importorskip("torch")
    from transformers.models.t5.modeling_t5 import T5Attention

    distances = torch.arange(3000)
    for bidirectional, ours in ((False, buckets), (True, buckets // 2)):
        expected = T5Attention._relative_position_bucket(-distances, bidirectional, buckets, distance)
        np.testing.assert_array_equal(distance_buckets(3000, ours, distance), expected)


def test_bucket_borders():
    # Sixteen buckets, eight of them exact, then steps of 128 ** (1/8): the powers of two are exact borders.
    found = distance_buckets(200, 16, 128)
    assert found[:9].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8]
    assert [found[border] - found[border - 1] for border in (16, 32, 64)] == [1, 1, 1]
    assert found[[16, 32, 64, 127, 128, 199]].tolist() == [10, 12, 14, 15, 15, 15]


def position_bias(bidirectional: bool) -> RelativePositionBias:
    """A small bias with distinct rows."""
    return RelativePositionBias(
        3, num_buckets=8, max_distance=14, bidirectional=bidirectional, scale=1.0, rngs=nnx.Rngs(0)
    )


def test_square_bias_is_the_table_at_every_pair_and_so_is_its_gradient():
    bias = position_bias(bidirectional=True)
    length = 23
    offsets = np.arange(length)[None, :] - np.arange(length)[:, None]
    buckets = distance_buckets(length, 4, 14)[np.abs(offsets)] + 4 * (offsets > 0)
    np.testing.assert_array_equal(bias.square(length)[0], np.asarray(bias.table[...])[buckets].transpose(2, 0, 1))
    weights = np.asarray(jax.random.normal(jax.random.key(1), (3, length, length)))
    gradient = nnx.grad(lambda bias: jnp.sum(bias.square(length)[0] * weights))(bias).table[...]
    expected = np.zeros((8, 3))
    np.add.at(expected, buckets, weights.transpose(1, 2, 0))
    np.testing.assert_allclose(gradient, expected, atol=1e-4)
    assert bias.square(1).shape == (1, 3, 1, 1)


def test_bias_of_one_position_is_a_row_of_the_square_bias():
    bias = position_bias(bidirectional=False)
    square = bias.square(20)
    for position in (0, 1, 7, 19):
        row = bias.row(jnp.int32(position), 20)
        np.testing.assert_array_equal(row[0, :, 0, : position + 1], square[0, :, position, : position + 1])


def test_norm_is_computed_in_float32():
    norm = RMSNorm(64, epsilon=1e-6, initial_scale=1.5)
    inputs = 1000 * jax.random.normal(jax.random.key(0), (5, 64))
    expected = 1.5 * inputs / np.sqrt(np.mean(np.square(inputs), -1, keepdims=True))
    np.testing.assert_allclose(norm(inputs), expected, rtol=1e-5)
    rounded = norm(inputs.astype(jnp.bfloat16))
    assert rounded.dtype == jnp.bfloat16
    exact = norm(inputs.astype(jnp.bfloat16).astype(jnp.float32))
    np.testing.assert_array_equal(rounded, exact.astype(jnp.bfloat16))


def test_attention_ignores_masked_keys_and_shares_keys_among_queries():
    attention = Attention(8, 4, 2, factor=1.0, rngs=nnx.Rngs(0))
    inputs = jax.random.normal(jax.random.key(0), (2, 3, 8))
    keys, values = attention.keys_values(jax.random.normal(jax.random.key(1), (2, 5, 8)))
    mask = jnp.asarray([[1, 1, 0, 1, 0], [1, 1, 1, 0, 0]], bool)[:, None, None]
    quiet = Dropout(0.0, None)
    found = attention(inputs, keys, values, mask=mask, bias=None, dropout=quiet)
    changed = jnp.where(mask[:, :, 0, :, None], keys, 7.0)
    np.testing.assert_array_equal(attention(inputs, changed, values, mask=mask, bias=None, dropout=quiet), found)
    one = attention(inputs[:, 1:2], keys, values, mask=mask, bias=None, dropout=quiet)
    np.testing.assert_allclose(one, found[:, 1:2], atol=1e-6)


def test_a_token_past_the_table_shows():
    embedding = Embedding(4, 2, scale=1.0, rngs=nnx.Rngs(0))
    found = embedding(jnp.asarray([3, 4]))
    assert jnp.all(jnp.isfinite(found[0])) and jnp.all(jnp.isnan(found[1]))
