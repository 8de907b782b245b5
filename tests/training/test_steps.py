"""Train steps: they learn, repeat themselves, donate their state, and compile once per shape."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from idgenrec_jax.config import MeshConfig
from idgenrec_jax.data.id_batches import IdBatch
from idgenrec_jax.data.packing import SupervisedBatch
from idgenrec_jax.models.t5 import T5, T5Config
from idgenrec_jax.sharding import make_mesh, parameter_shardings
from idgenrec_jax.training.optimizer import make_optimizer
from idgenrec_jax.training.recommender_loss import recommender_loss
from idgenrec_jax.training.steps import (
    compiler_options,
    create_train_state,
    make_id_step,
    make_supervised_step,
    place_train_state,
    seed_key,
)

RATE = np.float32(0.01)
# Untied, for a random tied T5 writes nothing but its start token, which is padding: every ID would be empty.
CONFIG = T5Config(
    vocab_size=48, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_decoder_layers=1, num_heads=2,
    tie_word_embeddings=False,
)  # fmt: skip
OPTIMIZER = make_optimizer()


def new_model(seed):
    """The graph definition and the parameters of a random model."""
    return nnx.split(T5(CONFIG, rngs=nnx.Rngs(seed)), nnx.Param)


GRAPHDEF = new_model(0)[0]


def new_state(seed=0):
    return create_train_state(new_model(seed)[1], OPTIMIZER)


def recommender_batch(rows=3, seed=0, width=6):
    """Two examples in each row, and padding behind them; prompts have `width` positions."""
    rng = np.random.default_rng(seed)
    prompts, targets = (np.zeros((2, rows, positions), np.int32) for positions in (width, 4))
    for tokens, segments in (prompts, targets):
        for row in range(rows):
            first, end = rng.integers(1, 3), rng.integers(3, tokens.shape[1] + 1)
            segments[row, :end] = np.where(np.arange(end) < first, 1, 2)
            tokens[row, :end] = rng.integers(2, 48, end)
    return SupervisedBatch(*map(jnp.asarray, (*prompts, *targets)))


def id_batch():
    """Three prompts of one ordinary token, two IDs of two slots, and one ordinary token."""
    batch, rng = recommender_batch(), np.random.default_rng(5)
    pairs = rng.integers(0, 3, (3, 2))
    ordinary = np.full((3, 1), -1)
    return IdBatch(
        item_tokens=jnp.asarray(rng.integers(2, 48, (3, 5)), jnp.int32),
        item_segments=jnp.ones((3, 5), jnp.int32),
        item_places=jnp.ones((3, 1), jnp.int32),
        slot_item=jnp.asarray(np.hstack([ordinary, np.repeat(pairs, 2, axis=1), ordinary]), jnp.int32),
        slot_position=jnp.asarray(np.tile([0, 0, 1, 0, 1, 0], (3, 1)), jnp.int32),
        prompt_tokens=batch.prompt_tokens,
        prompt_segments=jnp.ones((3, 6), jnp.int32),
        target_tokens=batch.target_tokens,
        target_segments=jnp.minimum(batch.target_segments, 1),
    )


@pytest.fixture(scope="module")
def recommender_step():
    return make_supervised_step(GRAPHDEF, OPTIMIZER)


@pytest.fixture(scope="module")
def id_step():
    return make_id_step(GRAPHDEF, GRAPHDEF, OPTIMIZER, jnp.zeros(48, bool), 2)


def assert_same_trees(left, right):
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_array_equal(a, b)


def differs(left, right):
    return any(not np.array_equal(a, b) for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True))


def test_recommender_steps_lower_the_loss_on_their_batch(recommender_step):
    state, losses = new_state(), []
    for _ in range(12):
        state, metrics = recommender_step(state, recommender_batch(), RATE, seed_key(0))
        losses.append(float(metrics["loss"]))
    assert np.mean(losses[-3:]) < np.mean(losses[:3]) - 0.5
    assert int(state.step) == 12


@pytest.mark.slow
def test_id_steps_lower_the_loss_and_leave_the_recommender_alone(id_step):
    recommender = new_model(1)[1]
    before = jax.tree.map(np.array, recommender)
    state, losses = new_state(), []
    for _ in range(12):
        state, metrics = id_step(state, recommender, id_batch(), RATE, seed_key(0))
        losses.append(float(metrics["loss"]))
    assert losses[1] < losses[0] and losses[-1] < losses[0] - 0.05
    assert_same_trees(recommender, before)


def test_the_state_is_donated_and_what_is_only_read_is_not(recommender_step, id_step):
    state, recommender, batch = new_state(), new_model(1)[1], id_batch()
    id_step(state, recommender, batch, RATE, seed_key(0))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((recommender, batch)))

    state, batch = new_state(), recommender_batch()
    recommender_step(state, batch, RATE, seed_key(0))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(batch))


def test_one_set_of_shapes_compiles_once(recommender_step):
    state = new_state()
    for count in range(4):
        state, _ = recommender_step(state, recommender_batch(seed=count), np.float32(0.01 * count), seed_key(count))
    assert recommender_step._cache_size() == 1
    recommender_step(state, recommender_batch(rows=2), RATE, seed_key(0))
    assert recommender_step._cache_size() == 2


def test_a_placed_state_compiles_once():
    mesh, params = make_mesh(MeshConfig()), new_model(0)[1]
    state = place_train_state(jax.device_put(params, parameter_shardings(mesh, params)), OPTIMIZER)
    places = jax.tree.map(lambda leaf: leaf.sharding, state)
    step = make_supervised_step(GRAPHDEF, OPTIMIZER, state_sharding=places)
    for count in range(3):
        state, _ = step(state, recommender_batch(seed=count), RATE, seed_key(0))
    assert step._cache_size() == 1


def test_a_state_with_an_average_trains_as_one_without_and_its_result_is_the_average():
    batch, key = recommender_batch(), seed_key(0)
    step = make_supervised_step(GRAPHDEF, OPTIMIZER, average_decay=0.3)
    plain, averaged = new_state(), create_train_state(new_model(0)[1], OPTIMIZER, is_averaged=True)
    assert plain.result is plain.params and averaged.result is averaged.average
    expected = jax.tree.map(np.asarray, averaged.average)
    for number in range(4):
        plain, _ = step(plain, batch, RATE, key)
        averaged, _ = step(averaged, batch, RATE, key)
        decay = min(0.3, (1 + number) / (10 + number))
        expected = jax.tree.map(
            lambda old, new, decay=decay: decay * old + (1 - decay) * np.asarray(new), expected, averaged.params
        )
    jax.tree.map(np.testing.assert_array_equal, plain.params, averaged.params)
    jax.tree.map(lambda found, wanted: np.testing.assert_allclose(found, wanted, atol=1e-6), averaged.result, expected)
    assert plain.average is None


def test_a_step_is_a_function_of_state_batch_and_seed(recommender_step):
    first, first_metrics = recommender_step(new_state(), recommender_batch(), RATE, seed_key(0))
    again, again_metrics = recommender_step(new_state(), recommender_batch(), RATE, seed_key(0))
    other, other_metrics = recommender_step(new_state(), recommender_batch(), RATE, seed_key(1))
    assert_same_trees((first, first_metrics), (again, again_metrics))
    assert differs(first.params, other.params) and differs(first_metrics, other_metrics)


def test_dropout_changes_with_the_step_counter_alone(recommender_step):
    _, metrics = recommender_step(new_state(), recommender_batch(), RATE, seed_key(0))
    later = dataclasses.replace(new_state(), step=jnp.int32(1))
    _, later_metrics = recommender_step(later, recommender_batch(), RATE, seed_key(0))
    assert metrics["loss"] != later_metrics["loss"]


def test_metrics_without_dropout_are_the_loss_and_the_unclipped_gradient_norm():
    step = make_supervised_step(GRAPHDEF, OPTIMIZER, dropout=False)
    batch = recommender_batch()
    differentiated = jax.value_and_grad(lambda params: recommender_loss(nnx.merge(GRAPHDEF, params), batch))
    loss, gradients = jax.jit(differentiated)(new_model(0)[1])
    state, metrics = step(new_state(), batch, np.float32(0.0), seed_key(0))
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    np.testing.assert_allclose(metrics["gradient_norm"], optax.global_norm(gradients), rtol=1e-5)
    assert metrics["gradient_norm"] > 1.0, "the batch must be one whose gradient is clipped"
    assert_same_trees(state.params, new_model(0)[1])


def test_padding_counts_for_nothing(recommender_step):
    batch = recommender_batch()
    assert (batch.target_segments == 0).any() and (batch.prompt_segments == 0).any()
    changed = batch._replace(
        prompt_tokens=jnp.where(batch.prompt_segments > 0, batch.prompt_tokens, 9),
        target_tokens=jnp.where(batch.target_segments > 0, batch.target_tokens, 9),
    )
    first, first_metrics = recommender_step(new_state(), batch, RATE, seed_key(0))
    second, second_metrics = recommender_step(new_state(), changed, RATE, seed_key(0))
    assert first_metrics["loss"] == second_metrics["loss"]
    for a, b in zip(jax.tree.leaves(first.params), jax.tree.leaves(second.params), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


# What saves memory, and bfloat16. Activations are most of the memory; the programs are compiled without LLVM's
# optimisations, which take the longest and change neither results nor memory by much.
DEEP = dataclasses.replace(CONFIG, d_ff=64, num_layers=2, dropout_rate=0.2)
FAST_COMPILATION = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def deep_step(*, accumulation=1, **fields):
    """A step of the deeper model from its first state: what it returns, and the bytes of its temporaries."""
    config = dataclasses.replace(DEEP, **fields)
    graphdef, params = nnx.split(T5(config, rngs=nnx.Rngs(0)), nnx.Param)
    step = make_supervised_step(
        graphdef,
        OPTIMIZER,
        accumulation=accumulation,
        compiler_options=FAST_COMPILATION | (compiler_options(config.rematerialise) or {}),
    )
    arguments = create_train_state(params, OPTIMIZER), recommender_batch(32, width=24), RATE, seed_key(0)
    compiled = step.lower(*arguments).compile()
    state, metrics = compiled(*arguments)
    return state, metrics, compiled.memory_analysis().temp_size_in_bytes


@pytest.fixture(scope="module")
def whole_step():
    return deep_step()


def relative_norm(found, expected):
    """Norm of the difference of two trees over the norm of the expected one."""
    squares = [
        (float(jnp.sum((a - b) ** 2)), float(jnp.sum(b**2)))
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    ]
    return (sum(difference for difference, _ in squares) / sum(size for _, size in squares)) ** 0.5


def first_moments(state):
    """After one step: a tenth of the clipped gradients."""
    return state.optimizer_state[1].mu


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "memory"),
    [
        ({"rematerialise": "layers"}, 0.7),
        ({"accumulation": 4, "rematerialise": "layers"}, 0.4),
    ],
    ids=["rematerialised", "rematerialised and accumulated"],
)
def test_the_same_step_in_less_memory(whole_step, options, memory):
    state, metrics, temporaries = deep_step(**options)
    whole_state, whole_metrics, whole_temporaries = whole_step
    np.testing.assert_allclose(metrics["loss"], whole_metrics["loss"], rtol=1e-6)
    np.testing.assert_allclose(metrics["gradient_norm"], whole_metrics["gradient_norm"], rtol=1e-5)
    assert relative_norm(first_moments(state), first_moments(whole_state)) < 1e-5
    assert temporaries < memory * whole_temporaries


@pytest.mark.slow
def test_a_rematerialised_id_step_is_the_same(id_step):
    graphdef, params = nnx.split(T5(dataclasses.replace(CONFIG, rematerialise="layers"), rngs=nnx.Rngs(0)), nnx.Param)
    options = FAST_COMPILATION | compiler_options("layers")
    step = make_id_step(graphdef, graphdef, OPTIMIZER, jnp.zeros(48, bool), 2, compiler_options=options)
    recommender = new_model(1)[1]
    state, metrics = step(create_train_state(params, OPTIMIZER), recommender, id_batch(), RATE, seed_key(0))
    whole_state, whole_metrics = id_step(new_state(), recommender, id_batch(), RATE, seed_key(0))
    np.testing.assert_allclose(metrics["loss"], whole_metrics["loss"], rtol=1e-6)
    assert relative_norm(first_moments(state), first_moments(whole_state)) < 1e-5


@pytest.mark.slow
def test_a_step_in_bfloat16_is_near_the_one_in_float32_and_leaves_no_state_in_bfloat16(whole_step):
    state, metrics, _ = deep_step(compute_dtype="bfloat16")
    whole_state, whole_metrics, _ = whole_step
    dtypes = {leaf.dtype for leaf in jax.tree.leaves((state, metrics))}
    assert dtypes == {jnp.dtype("float32"), jnp.dtype("int32")}
    assert metrics["loss"] != whole_metrics["loss"]
    np.testing.assert_allclose(metrics["loss"], whole_metrics["loss"], rtol=2e-3)
    assert relative_norm(first_moments(state), first_moments(whole_state)) < 0.1


def equations(jaxpr):
    """All equations of a jaxpr and of those inside it."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.core.jaxprs_in_params(equation.params):
            yield from equations(inner)


def operand_dtypes(step, *arguments):
    """The names of the operands' dtypes of every kind of operation in a step."""
    found = {}
    for equation in equations(jax.make_jaxpr(step)(*arguments).jaxpr):
        names = {str(value.aval.dtype) for value in equation.invars if hasattr(value.aval, "dtype")}
        found.setdefault(equation.primitive.name, set()).update(names)
    return found


@pytest.mark.parametrize("kind", ["recommender", "id"])
def test_in_bfloat16_softmax_losses_norms_and_the_optimizer_are_float32(kind):
    graphdef, params = nnx.split(T5(dataclasses.replace(CONFIG, compute_dtype="bfloat16"), rngs=nnx.Rngs(0)), nnx.Param)
    state = create_train_state(params, OPTIMIZER)
    if kind == "recommender":
        step, read = make_supervised_step(graphdef, OPTIMIZER), (recommender_batch(),)
    else:
        step, read = make_id_step(graphdef, graphdef, OPTIMIZER, jnp.zeros(48, bool), 2), (params, id_batch())
    found = operand_dtypes(step, state, *read, RATE, seed_key(0))
    assert "bfloat16" in found["dot_general"] and "bfloat16" in found["add"]
    for operation in ("exp", "log", "rsqrt", "sqrt", "reduce_max", "square", "div"):
        assert "float32" in found[operation] and "bfloat16" not in found[operation], operation
