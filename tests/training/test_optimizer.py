"""AdamW against its equations, which parameters decay, and the learning-rate schedule."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from idgenrec_jax.models.t5 import T5, T5Config
from idgenrec_jax.training.optimizer import (
    apply_gradients,
    decay_mask,
    make_optimizer,
    moving_average,
    warmup_linear_decay,
)

RATES = (0.1, 0.05, 0.2)


def example_params():
    rng = np.random.default_rng(0)
    return {
        "kernel": jnp.asarray(rng.normal(size=(3, 4)), jnp.float32),
        "final_norm": {"scale": jnp.asarray(rng.normal(size=(4,)), jnp.float32)},
    }


def example_gradients(scale):
    rng = np.random.default_rng(1)

    def random_like(value):
        return jnp.asarray(rng.normal(size=value.shape) * scale, jnp.float32)

    return [jax.tree.map(random_like, example_params()) for _ in RATES]


def train(gradients, **options):
    optimizer, params = make_optimizer(**options), example_params()
    state = optimizer.init(params)
    for gradient, rate in zip(gradients, RATES, strict=True):
        params, state = apply_gradients(optimizer, gradient, state, params, rate)
    return params


def adamw_by_hand(gradients, decays):
    """Loshchilov and Hutter's AdamW on flat float64 arrays, after clipping the global norm to 1."""
    params = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(example_params())]
    first, second = [np.zeros_like(leaf) for leaf in params], [np.zeros_like(leaf) for leaf in params]
    for count, (gradient, rate) in enumerate(zip(gradients, RATES, strict=True), start=1):
        leaves = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(gradient)]
        norm = np.sqrt(sum((leaf**2).sum() for leaf in leaves))
        for index, leaf in enumerate(leaves):
            leaf = leaf / max(norm, 1.0)
            first[index] = 0.9 * first[index] + 0.1 * leaf
            second[index] = 0.999 * second[index] + 0.001 * leaf**2
            adam = (first[index] / (1 - 0.9**count)) / (np.sqrt(second[index] / (1 - 0.999**count)) + 1e-8)
            params[index] = params[index] - rate * (adam + decays[index] * params[index])
    return params


# Leaves in tree order: final_norm.scale, which does not decay, then kernel, which does.
@pytest.mark.parametrize("scale", [0.01, 5.0], ids=["below the clip", "clipped"])
def test_steps_follow_the_equations_of_adamw(scale):
    gradients = example_gradients(scale)
    for value, expected in zip(jax.tree.leaves(train(gradients)), adamw_by_hand(gradients, [0.0, 0.01]), strict=True):
        np.testing.assert_allclose(value, expected, atol=1e-5)


def test_a_gradient_beyond_the_clip_counts_by_its_direction_only():
    once, thrice = train(example_gradients(5.0)), train(example_gradients(15.0))
    for left, right in zip(jax.tree.leaves(once), jax.tree.leaves(thrice), strict=True):
        np.testing.assert_allclose(left, right, atol=1e-6)


def test_a_clip_of_zero_clips_nothing():
    gradients = example_gradients(5.0)
    free, huge, clipped = (jax.tree.leaves(train(gradients, clip_norm=norm)) for norm in (0.0, 1e9, 1.0))
    for left, right in zip(free, huge, strict=True):
        np.testing.assert_array_equal(left, right)
    assert not np.allclose(free[1], clipped[1], atol=1e-6)


def test_without_gradient_only_the_decay_moves_parameters_and_norms_stay():
    params = example_params()
    trained = train([jax.tree.map(jnp.zeros_like, params)] * len(RATES))
    np.testing.assert_array_equal(trained["final_norm"]["scale"], params["final_norm"]["scale"])
    shrinking = np.prod([1 - rate * 0.01 for rate in RATES])
    np.testing.assert_allclose(trained["kernel"], params["kernel"] * shrinking, rtol=1e-6)


def test_the_parameters_without_decay_are_exactly_the_norms_of_t5():
    config = T5Config(
        vocab_size=20, d_model=8, d_kv=4, d_ff=12, num_layers=2, num_decoder_layers=3, num_heads=2,
        feed_forward="gated-gelu", tie_word_embeddings=False,
    )  # fmt: skip
    params = nnx.eval_shape(lambda: nnx.state(T5(config, rngs=nnx.Rngs(0)), nnx.Param))
    decays = jax.tree.leaves(decay_mask(params))
    # T5 has no biases: its norm scales are its only vectors. Two per encoder block, three per decoder block, two final.
    assert [not decay for decay in decays] == [leaf.ndim == 1 for leaf in jax.tree.leaves(params)]
    assert decays.count(False) == 2 * 2 + 3 * 3 + 2


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", ["embedding_factor", "query_factor"])
def test_only_the_embedding_tables_or_the_query_kernels_of_t5_have_their_factor(name, tied):
    config = T5Config(
        vocab_size=20, d_model=8, d_kv=3, d_ff=12, num_layers=1, num_decoder_layers=1, num_heads=2,
        tie_word_embeddings=tied,
    )  # fmt: skip
    params = nnx.state(T5(config, rngs=nnx.Rngs(0)), nnx.Param)
    gradients = jax.tree.map(jnp.ones_like, params)
    updates = {}
    for factor in (1.0, 5.0):
        optimizer = make_optimizer(**{name: factor})
        found, _ = optimizer.update(gradients, optimizer.init(params), params)
        leaves = jax.tree_util.tree_leaves_with_path(found)
        updates[factor] = {jax.tree_util.keystr(path): leaf for path, leaf in leaves}
    scaled = 0
    for path, before in updates[1.0].items():
        is_table = before.shape == (20, 8)
        is_scaled = is_table if name == "embedding_factor" else "query" in path
        scaled += is_scaled
        np.testing.assert_allclose(updates[5.0][path], before * (5.0 if is_scaled else 1.0), rtol=1e-6)
    # One attention in the encoder block, two in the decoder block.
    assert scaled == (3 if name == "query_factor" else 1 if tied else 2)


def test_the_schedule_rises_for_five_percent_and_falls_to_zero():
    assert warmup_linear_decay(0.0, 2e-3) == 0.0
    assert warmup_linear_decay(0.025, 2e-3) == pytest.approx(1e-3)
    assert warmup_linear_decay(0.05, 2e-3) == pytest.approx(2e-3)
    assert warmup_linear_decay(0.525, 2e-3) == pytest.approx(1e-3)
    assert warmup_linear_decay(1.0, 2e-3) == 0.0
    assert warmup_linear_decay(0.0, 2e-3, warmup_fraction=0.0) == pytest.approx(2e-3)


def test_the_schedule_falls_to_a_share_of_the_peak():
    assert warmup_linear_decay(0.025, 2e-3, final_fraction=0.5) == pytest.approx(1e-3)
    assert warmup_linear_decay(0.525, 2e-3, final_fraction=0.5) == pytest.approx(1.5e-3)
    assert warmup_linear_decay(1.0, 2e-3, final_fraction=0.5) == pytest.approx(1e-3)
    assert warmup_linear_decay(1.0, 2e-3, final_fraction=1.0) == warmup_linear_decay(0.05, 2e-3) == 2e-3


def test_an_average_forgets_its_beginning_and_then_moves_by_its_decay():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(60, 3)).astype(np.float32)
    average = {"kernel": jnp.full(3, 1e3, jnp.float32)}
    expected = np.full(3, 1e3)
    for step, value in enumerate(values):
        average = moving_average(average, {"kernel": jnp.asarray(value)}, jnp.int32(step), 0.8)
        decay = min(0.8, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
        np.testing.assert_allclose(average["kernel"], expected, rtol=1e-4, atol=1e-4)
    # What came in at the 40th step counts for .8 ** 20 of what comes in at the last.
    assert np.abs(expected).max() < 1.5


@pytest.mark.parametrize("arguments", [(-0.01, 1.0), (1.01, 1.0), (0.5, 1.0, 1.0), (0.5, 1.0, -0.1)])
def test_the_schedule_refuses_shares_out_of_range(arguments):
    with pytest.raises(ValueError, match="expected"):
        warmup_linear_decay(*arguments)
