"""Cross-entropy over the vocabulary: the chunkwise form against log_softmax of the whole table of logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from idgenrec_jax.training.vocabulary_cross_entropy import weighted_cross_entropy


def dense_cross_entropy(hidden, table, targets, weights):
    log_probabilities = jax.nn.log_softmax(hidden @ table.T, axis=-1)
    return -(weights * jnp.take_along_axis(log_probabilities, targets[..., None], axis=-1)[..., 0]).sum()


def random_inputs(batch, length, vocab, width):
    rng = np.random.default_rng(3)
    hidden = jnp.asarray(rng.normal(size=(batch, length, width)), jnp.float32)
    table = jnp.asarray(rng.normal(size=(vocab, width)), jnp.float32)
    targets = jnp.asarray(rng.integers(vocab, size=(batch, length)), jnp.int32).at[:, 0].set(vocab - 1)
    weights = rng.uniform(0.5, 2.0, (batch, length)) * (rng.uniform(size=(batch, length)) < 0.6)
    return hidden * 2, table, targets, jnp.asarray(weights, jnp.float32)


# One chunk, chunks of one token, an exact multiple, a remainder, more than there are; with gaps left out or not.
@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("chunk_tokens", [None, 1, 6, 7, 1000])
def test_chunkwise_equals_dense_in_value_and_gradients(chunk_tokens, skip):
    hidden, table, targets, weights = random_inputs(batch=5, length=6, vocab=37, width=8)

    def value_and_gradients(loss):
        return jax.value_and_grad(lambda *inputs: 3.0 * loss(*inputs, targets, weights), (0, 1))(hidden, table)

    expected, expected_gradients = value_and_gradients(dense_cross_entropy)

    def chunkwise(*inputs):
        return weighted_cross_entropy(*inputs, chunk_tokens=chunk_tokens, skip=skip)

    found, gradients = value_and_gradients(chunkwise)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(3.0 * chunkwise(hidden, table, targets, weights), expected, rtol=1e-5)
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(gradient, expected_gradient, atol=1e-5, rtol=1e-5)
        assert np.abs(gradient).max() > 0.1


@pytest.mark.parametrize("skip", [True, False])
def test_tokens_of_weight_zero_count_for_nothing_whatever_they_hold(skip):
    hidden, table, targets, weights = random_inputs(batch=4, length=6, vocab=11, width=8)
    assert (weights == 0).any()
    wild = jnp.where(weights[..., None] > 0, hidden, jnp.nan)

    def value_and_gradients(hidden):
        return jax.value_and_grad(
            lambda *inputs: weighted_cross_entropy(*inputs, targets, weights, chunk_tokens=5, skip=skip), (0, 1)
        )(hidden, table)

    expected, expected_gradients = value_and_gradients(hidden)
    found, gradients = value_and_gradients(wild)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-6)


def test_targets_and_weights_may_be_constants_of_a_program():
    hidden, table, targets, weights = random_inputs(batch=3, length=4, vocab=11, width=8)
    constants = np.asarray(targets), np.asarray(weights)
    found = jax.jit(lambda *inputs: weighted_cross_entropy(*inputs, *constants))(hidden, table)
    np.testing.assert_allclose(found, dense_cross_entropy(hidden, table, targets, weights), rtol=1e-5)


def test_all_weights_zero_give_zero_and_no_gradient():
    hidden, table, targets, weights = random_inputs(batch=2, length=4, vocab=11, width=8)
    value, gradient = jax.value_and_grad(weighted_cross_entropy, 1)(hidden, table, targets, weights * 0)
    assert value == 0 and not gradient.any()


def test_logits_far_apart_stay_finite():
    hidden, table, targets, weights = random_inputs(batch=3, length=4, vocab=40, width=8)
    value, gradient = jax.value_and_grad(weighted_cross_entropy)(hidden * 1e4, table, targets, weights)
    assert np.isfinite(value) and np.isfinite(gradient).all()
    np.testing.assert_allclose(value, dense_cross_entropy(hidden * 1e4, table, targets, weights), rtol=1e-5)


def test_memory_does_not_grow_with_tokens_times_vocabulary():
    length, width, vocab = 8, 16, 10_000

    def temporary_bytes(batch):
        shape = jax.ShapeDtypeStruct
        gradient = jax.grad(lambda *inputs: weighted_cross_entropy(*inputs, chunk_tokens=64), (0, 1))
        arguments = (
            shape((batch, length, width), jnp.float32),
            shape((vocab, width), jnp.float32),
            shape((batch, length), jnp.int32),
            shape((batch, length), jnp.float32),
        )
        return jax.jit(gradient).lower(*arguments).compile().memory_analysis().temp_size_in_bytes

    growth = temporary_bytes(128) - temporary_bytes(32)
    assert growth < 0.1 * 96 * length * vocab * 4
