"""Jitted train steps, made by factories from graph definitions and an optimizer.

A step is a pure function of (state, batch, learning rate, seed key): its dropout key is the seed key folded with the
state's own step counter, so a resumed run repeats an undisturbed one. The state is donated. Every factory returns
the `jax.jit` function itself; one set of batch shapes compiles once.

`learning_rate` is a scalar; give it in one type throughout (numpy.float32, or an array already on the device), since
another type is another compilation. `seed_key` is from `seed_key`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float, PyTree

from idgenrec_jax.data.id_batches import IdBatch
from idgenrec_jax.data.packing import SupervisedBatch
from idgenrec_jax.models.layers import BatchPart, DropoutKey
from idgenrec_jax.sharding import parameter_shardings
from idgenrec_jax.training.choice_softmax import ChoiceTable
from idgenrec_jax.training.id_loss import id_loss
from idgenrec_jax.training.id_terms import PUBLISHED, IdTerms
from idgenrec_jax.training.optimizer import apply_gradients, moving_average
from idgenrec_jax.training.recommender_loss import recommender_loss
from idgenrec_jax.training.segments import split_rows

Metrics = dict[str, Float[Array, ""]]
TrainStep = Callable[..., tuple["TrainState", Metrics]]
CompilerOptions = dict[str, Any] | None
KEEP_BARRIERS = {"xla_disable_hlo_passes": "cse_barrier_expander"}
"""For XLA's CPU compiler."""
Differentiated = Callable[[PyTree], tuple[Float[Array, ""], PyTree]]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """What a train step changes: parameters, the optimizer's moments, and the number of steps taken so far.

    `average` is the moving average of the parameters, None where they are not averaged.
    """

    params: PyTree
    optimizer_state: PyTree
    # int32 scalar: steps of this model, not of the run. A PyTree in type, because Orbax and shardings put other leaves
    # in its place.
    step: PyTree
    average: PyTree = None

    @property
    def result(self) -> PyTree:
        """The parameters that training has led to so far, which are validated and kept: the average, where there is."""
        return self.params if self.average is None else self.average


def create_train_state(
    params: PyTree, optimizer: optax.GradientTransformation, *, is_averaged: bool = False
) -> TrainState:
    """Return the state before the first step; works under jit and `jax.eval_shape`."""
    average = jax.tree.map(jnp.copy, params) if is_averaged else None
    return TrainState(params, optimizer.init(params), jnp.zeros((), jnp.int32), average)


def place_train_state(
    params: PyTree, optimizer: optax.GradientTransformation, *, is_averaged: bool = False
) -> TrainState:
    """Return the state before the first step, its moments where their parameters are on the mesh; it takes `params`.

    A step that returns its state in another place than it was given compiles again for the next.
    """
    mesh = jax.tree.leaves(params)[0].sharding.mesh
    create = partial(create_train_state, optimizer=optimizer, is_averaged=is_averaged)
    places = parameter_shardings(mesh, jax.eval_shape(create, params))
    return jax.jit(create, out_shardings=places, donate_argnums=0)(params)


def seed_key(seed: int) -> DropoutKey:
    """Return the key from which every step of a phase derives its dropout.

    Only its words are used: the masks come from a hash of them and of the position (see `layers.Dropout`).
    """
    return jax.random.key(seed)


def compiler_options(*rematerialise: str) -> CompilerOptions:
    """Return what the compiler of a step needs to be told, given `T5Config.rematerialise` of the models in it.

    XLA's CPU compiler drops the barriers that hold what is rematerialised back until its gradient is due, and computes
    it beside the forward pass instead: more work, and no less memory.
    """
    return KEEP_BARRIERS if jax.default_backend() == "cpu" and "layers" in rematerialise else None


def make_supervised_step(
    graphdef: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    *,
    loss: Callable[..., Float[Array, ""]] = recommender_loss,
    dropout: bool = True,
    accumulation: int = 1,
    average_decay: float = 0.0,
    state_sharding: PyTree = None,
    compiler_options: CompilerOptions = None,
) -> TrainStep:
    """Return `supervised_step(state, batch: SupervisedBatch, learning_rate, seed_key[, choices]) -> (state, metrics)`.

    It trains a T5 on (text, words) pairs: the recommender in its phases, the ID generator in the warm start. `loss` is
    one of `losses.SUPERVISED_LOSSES`; that over the catalogue is given its `choices`. The state is donated. Metrics:
    `loss` (before the step) and `gradient_norm` (before clipping), float32. Inputs are read where the caller has placed
    them; `state_sharding`, a pytree prefix of the state, keeps the new state where the old one was. The rows of a
    batch, a multiple of `accumulation`, are computed in so many parts whose gradients are added up: it is the same
    step, dropout included, up to rounding. `average_decay` is that of a state with an average. `compiler_options` are
    those of `jax.jit`.
    """

    def supervised_step(state, batch: SupervisedBatch, learning_rate, key, choices: ChoiceTable | None = None):
        dropout_key = jax.random.fold_in(key, state.step) if dropout else None
        further = {} if choices is None else {"choices": choices}

        def loss_of(params, rows=batch, **part):
            return loss(nnx.merge(graphdef, params), rows, dropout_key, **further, **part)

        def accumulated(params):
            def add(total, rows):
                index, part_batch = rows
                part = {"part": BatchPart(index, accumulation), "whole": batch}
                return jax.tree.map(jnp.add, total, jax.value_and_grad(loss_of)(params, part_batch, **part)), None

            zero = jnp.zeros((), jnp.float32), jax.tree.map(jnp.zeros_like, params)
            # [rows, ..] -> [accumulation, rows / accumulation, ..]
            parts = split_rows(batch, accumulation)
            return jax.lax.scan(add, zero, (jnp.arange(accumulation), parts))[0]

        differentiated = jax.value_and_grad(loss_of) if accumulation == 1 else accumulated
        return _descend(optimizer, state, differentiated, learning_rate, average_decay)

    return jax.jit(
        supervised_step, donate_argnums=0, out_shardings=(state_sharding, None), compiler_options=compiler_options
    )


def make_id_step(
    id_generator_graphdef: nnx.GraphDef,
    recommender_graphdef: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    no_embedding: Bool[Array, " vocab"],
    id_length: int,
    *,
    dropout: bool = False,
    chunks: int = 1,
    terms: IdTerms = PUBLISHED,
    state_sharding: PyTree = None,
    compiler_options: CompilerOptions = None,
) -> TrainStep:
    """Return `id_step(state, recommender_params, batch: IdBatch, learning_rate, seed_key[, choices, temperature,
    reference_params])`, which returns (state, metrics).

    `state` is the ID generator's and is donated; `recommender_params` are read only. `dropout` is the ID generator's,
    `choices`, `chunks`, `temperature` and `terms` are those of `id_loss`; `reference_params` are those of the ID
    generator that a leash holds to. Metrics, `state_sharding` and `compiler_options` are those of
    `make_supervised_step`.
    """

    def id_step(
        state,
        recommender_params,
        batch: IdBatch,
        learning_rate,
        key,
        choices: ChoiceTable | None = None,
        temperature: Float[Array, ""] | None = None,
        reference_params: PyTree = None,
    ):
        dropout_key = jax.random.fold_in(key, state.step) if dropout else None
        recommender = nnx.merge(recommender_graphdef, recommender_params)
        reference = None if reference_params is None else nnx.merge(id_generator_graphdef, reference_params)

        def loss_of(params):
            return id_loss(
                nnx.merge(id_generator_graphdef, params),
                recommender,
                batch,
                no_embedding,
                id_length=id_length,
                choices=choices,
                dropout_key=dropout_key,
                chunks=chunks,
                temperature=temperature,
                terms=terms,
                reference=reference,
            )

        return _descend(optimizer, state, jax.value_and_grad(loss_of), learning_rate)

    return jax.jit(id_step, donate_argnums=0, out_shardings=(state_sharding, None), compiler_options=compiler_options)


def _descend(
    optimizer: optax.GradientTransformation,
    state: TrainState,
    differentiated: Differentiated,
    learning_rate: Float[Array, ""] | float,
    average_decay: float = 0.0,
) -> tuple[TrainState, Metrics]:
    """Return the state after one optimizer step, and the metrics of the state before it.

    `differentiated` maps parameters to loss and gradients, as from `jax.value_and_grad`.
    """
    loss, gradients = differentiated(state.params)
    params, optimizer_state = apply_gradients(
        optimizer, gradients, state.optimizer_state, state.params, learning_rate
    )
    metrics = {"loss": loss, "gradient_norm": optax.global_norm(gradients)}
    average = state.average
    if average is not None:
        average = moving_average(average, params, state.step, average_decay)
    return TrainState(params, optimizer_state, state.step + 1, average), metrics
