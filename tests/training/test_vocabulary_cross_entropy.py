"""Cross-entropy over the vocabulary: the blockwise form against log_softmax of the whole table of logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from idgenrec_jax.training.vocabulary_cross_entropy import token_losses


def dense_losses(hidden, table, targets):
    log_probabilities = jax.nn.log_softmax(hidden @ table.T, axis=-1)
    return -jnp.take_along_axis(log_probabilities, targets[:, None], axis=-1)[:, 0]


def random_inputs(tokens, vocab, width):
    generator = np.random.default_rng(3)
    hidden, table = (jnp.asarray(generator.normal(size=(rows, width)), jnp.float32) for rows in (tokens, vocab))
    targets = jnp.asarray(generator.integers(vocab, size=tokens), jnp.int32).at[:3].set(vocab - 1)
    return hidden * 2, table, targets, jnp.asarray(generator.normal(size=tokens), jnp.float32)


# One block, an exact multiple, remainders of one and of all but one, blocks of one token, more block than vocabulary.
@pytest.mark.parametrize("vocab, block_size", [(64, 64), (64, 16), (65, 16), (63, 16), (17, 1), (30, 8192)])
def test_blockwise_equals_dense_in_value_and_gradients(vocab, block_size):
    hidden, table, targets, weights = random_inputs(tokens=13, vocab=vocab, width=8)

    def value_and_gradients(losses):
        return jax.value_and_grad(lambda *inputs: (losses(*inputs, targets) * weights).sum(), (0, 1))(hidden, table)

    expected, expected_gradients = value_and_gradients(dense_losses)
    found, gradients = value_and_gradients(lambda *inputs: token_losses(*inputs, block_size=block_size))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(gradient, expected_gradient, atol=1e-5, rtol=1e-5)
        assert np.abs(gradient).max() > 0.1


def test_logits_far_apart_stay_finite():
    hidden, table, targets, _ = random_inputs(tokens=5, vocab=40, width=8)
    losses, gradient = jax.value_and_grad(lambda hidden: token_losses(hidden, table, targets, block_size=16).sum())(
        hidden * 1e4
    )
    assert np.isfinite(losses) and np.isfinite(gradient).all()
    np.testing.assert_allclose(losses, dense_losses(hidden * 1e4, table, targets).sum(), rtol=1e-5)


def test_memory_does_not_grow_with_tokens_times_vocabulary():
    tokens, width = 512, 16

    def temporary_bytes(vocab):
        shapes = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((tokens, width), (vocab, width)))
        targets = jax.ShapeDtypeStruct((tokens,), jnp.int32)
        gradient = jax.grad(lambda *inputs: token_losses(*inputs, block_size=1024).sum(), (0, 1))
        return jax.jit(gradient).lower(*shapes, targets).compile().memory_analysis().temp_size_in_bytes

    growth = temporary_bytes(17_000) - temporary_bytes(5_000)
    assert growth < 0.25 * tokens * 12_000 * 4
