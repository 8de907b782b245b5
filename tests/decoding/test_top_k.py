"""The blockwise top-k against a full stable sort."""

import jax.numpy as jnp
import numpy as np
import pytest

from idgenrec_jax.decoding.top_k import blockwise_top_k


@pytest.mark.parametrize(("shape", "k"), [((2, 3, 1000), 3), ((4, 2048), 5), ((3, 777), 1), ((5, 40), 7), ((2, 9), 9)])
@pytest.mark.parametrize("num_values", [4, 10**6])
def test_equals_a_stable_sort_with_few_and_many_different_values(shape, k, num_values):
    rng = np.random.default_rng(k)
    values = rng.integers(-num_values, num_values, shape).astype(np.float32)
    values[rng.random(shape) < 0.3] = -np.inf
    best, indices = blockwise_top_k(jnp.asarray(values), k)
    expected = np.argsort(-values, axis=-1, kind="stable")[..., :k]
    np.testing.assert_array_equal(np.asarray(indices), expected)
    np.testing.assert_array_equal(np.asarray(best), np.take_along_axis(values, expected, axis=-1))


def test_rows_with_fewer_finite_values_than_k_give_indices_inside_the_row():
    values = np.full((2, 650), -np.inf, np.float32)
    values[:, 649] = 1.0
    best, indices = (np.asarray(array) for array in blockwise_top_k(jnp.asarray(values), 4))
    assert (indices[:, 0] == 649).all() and (indices < 650).all()
    assert np.isneginf(best[:, 1:]).all()
