"""Attention over the vocabulary: the blockwise form against the dense one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from idgenrec_jax.training.vocabulary_attention import dense_soft_embedding, soft_embedding


def random_inputs(tokens, vocab, d_model, d_embed, scale=1.0, dtype=jnp.float32):
    rng = np.random.default_rng(7)
    hidden = jnp.asarray(rng.normal(size=(tokens, d_model)) * scale, dtype)
    keys = jnp.asarray(rng.normal(size=(vocab, d_model)), jnp.float32)
    values = jnp.asarray(rng.normal(size=(vocab, d_embed)), jnp.float32)
    cotangent = jnp.asarray(rng.normal(size=(tokens, d_embed)), jnp.float32)
    return hidden, keys, values, cotangent


def numpy_soft_embedding(hidden, keys, values):
    logits = np.asarray(hidden, np.float64) @ np.asarray(keys, np.float64).T
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True) @ np.asarray(values, np.float64)


def value_and_gradients(function, hidden, keys, values, cotangent):
    def scalar(hidden, keys, values):
        output = function(hidden, keys, values)
        return (output * cotangent).sum(), output

    (_, output), gradients = jax.value_and_grad(scalar, argnums=(0, 1, 2), has_aux=True)(hidden, keys, values)
    return output, gradients


# One block, an exact multiple, remainders of one and of all but one, blocks of one token, more block than vocabulary.
@pytest.mark.parametrize("vocab, block_size", [(64, 64), (64, 16), (65, 16), (63, 16), (17, 1), (30, 4096)])
def test_blockwise_equals_dense_in_value_and_gradients(vocab, block_size):
    inputs = random_inputs(tokens=11, vocab=vocab, d_model=8, d_embed=5)
    expected, expected_gradients = value_and_gradients(dense_soft_embedding, *inputs)
    output, gradients = value_and_gradients(
        lambda hidden, keys, values: soft_embedding(hidden, keys, values, block_size=block_size), *inputs
    )
    np.testing.assert_allclose(output, numpy_soft_embedding(*inputs[:3]), atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(output, expected, atol=1e-5, rtol=1e-5)
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(gradient, expected_gradient, atol=1e-5, rtol=1e-5)
    assert np.abs(gradients[0]).max() > 0.01 and np.abs(gradients[1]).max() > 0.01
    assert not np.any(gradients[2]), "the values belong to the frozen recommender"


def test_the_gradient_is_that_of_finite_differences():
    hidden, keys, values, cotangent = random_inputs(tokens=3, vocab=21, d_model=4, d_embed=4)
    _, (hidden_gradient, keys_gradient, _) = value_and_gradients(
        lambda *inputs: soft_embedding(*inputs, block_size=8), hidden, keys, values, cotangent
    )

    def loss(hidden, keys):
        return (numpy_soft_embedding(hidden, keys, values) * np.asarray(cotangent, np.float64)).sum()

    for index, (array, gradient) in enumerate(((hidden, hidden_gradient), (keys, keys_gradient))):
        for row, column in ((0, 1), (2, 3)):
            shift = np.zeros(array.shape)
            shift[row, column] = 1e-5
            above = [np.asarray(hidden, np.float64), np.asarray(keys, np.float64)]
            below = list(above)
            above[index], below[index] = above[index] + shift, below[index] - shift
            np.testing.assert_allclose(gradient[row, column], (loss(*above) - loss(*below)) / 2e-5, atol=1e-4)


def test_huge_logits_give_the_row_of_the_likeliest_token():
    hidden, keys, values, cotangent = random_inputs(tokens=6, vocab=40, d_model=8, d_embed=3, scale=1e4)
    output, gradients = value_and_gradients(
        lambda *inputs: soft_embedding(*inputs, block_size=16), hidden, keys, values, cotangent
    )
    np.testing.assert_allclose(output, values[(hidden @ keys.T).argmax(axis=-1)], atol=1e-6)
    assert all(np.isfinite(gradient).all() for gradient in gradients)


def test_bfloat16_hidden_states_stay_near_the_float32_result():
    hidden, keys, values, cotangent = random_inputs(tokens=9, vocab=50, d_model=8, d_embed=6, dtype=jnp.bfloat16)
    output, (hidden_gradient, keys_gradient, _) = value_and_gradients(
        lambda *inputs: soft_embedding(*inputs, block_size=16), hidden, keys, values, cotangent
    )
    expected = value_and_gradients(dense_soft_embedding, hidden.astype(jnp.float32), keys, values, cotangent)
    assert output.dtype == jnp.float32 and hidden_gradient.dtype == jnp.bfloat16 and keys_gradient.dtype == jnp.float32
    np.testing.assert_allclose(output, expected[0], atol=0.05)
    np.testing.assert_allclose(keys_gradient, expected[1][1], atol=0.1)


def test_a_block_size_of_zero_is_refused():
    with pytest.raises(ValueError, match="block_size is 0"):
        soft_embedding(*random_inputs(2, 5, 3, 3)[:3], block_size=0)


def temporary_bytes(function, tokens, vocab):
    shapes = [(tokens, 16), (vocab, 16), (vocab, 16)]
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    differentiated = jax.value_and_grad(lambda *inputs: (function(*inputs) ** 2).sum(), argnums=(0, 1))
    return jax.jit(differentiated).lower(*arguments).compile().memory_analysis().temp_size_in_bytes


def test_the_memory_of_the_blockwise_form_does_not_grow_as_tokens_times_vocabulary():
    tokens, small, large = 512, 4_096, 32_768
    growth = temporary_bytes(soft_embedding, tokens, large) - temporary_bytes(soft_embedding, tokens, small)
    dense_growth = temporary_bytes(dense_soft_embedding, tokens, large) - temporary_bytes(
        dense_soft_embedding, tokens, small
    )
    matrix_growth = tokens * (large - small) * 4
    assert dense_growth >= matrix_growth
    # What may grow is a copy of the tables, [vocab, 16] each; [tokens, vocab] is 32 times larger.
    assert growth <= matrix_growth / 4
