"""What the training works share: an optimizer, steps over the batches of an epoch, and the comparison of losses."""

import time
from collections.abc import Callable, Mapping
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import PyTree

from idgenrec_jax.benchmark.work import Disagreement
from idgenrec_jax.data.choices import TargetChoices
from idgenrec_jax.experiment import Experiment
from idgenrec_jax.models.create import Model
from idgenrec_jax.models.t5 import T5
from idgenrec_jax.training.optimizer import make_optimizer
from idgenrec_jax.training.steps import place_train_state, seed_key

LOSS_TOLERANCE = {"float32": 1e-3, "bfloat16": 0.05}
"""Share by which two losses or gradient norms of the same batch may differ, by the dtype of the arithmetic."""
RATE = np.float32(1e-4)


class _Batches(Protocol):
    """The batches of an epoch."""

    def batch(self, step: int) -> PyTree:
        """Return batch `step`."""


class Steps:
    """Training that goes on from run to run over the same batches, made as they are needed, as in a real epoch."""

    def __init__(
        self,
        experiment: Experiment,
        model: Model,
        step: Callable[..., tuple],
        plan: _Batches,
        num_steps: int,
    ):
        """Start from the model's parameters, which are copied: a step consumes its state."""
        self._step, self._plan, self._num_steps, self._place = step, plan, num_steps, experiment.place_batch
        copied = jax.tree.map(jnp.copy, model.params)
        self._state = place_train_state(copied, benchmark_optimizer(experiment))
        self._key = seed_key(experiment.config.training.seed)

    def run(self) -> float:
        """Train on every batch once, and return the last loss."""
        start = time.perf_counter()
        for number in range(self._num_steps):
            self._state, metrics = self._step(self._state, self._place(self._plan.batch(number)), self._key)
        loss = float(metrics["loss"])
        self._seconds = time.perf_counter() - start
        return loss

    def host_time(self) -> str:
        """Return in words how long the host takes to make a batch, and which share of the last run's steps that is.

        Batches are made while the device computes: it waits for them only where the share comes near to all.
        """
        start = time.perf_counter()
        for number in range(self._num_steps):
            self._plan.batch(number)
        seconds = time.perf_counter() - start
        share = seconds / self._seconds
        return f"a batch made in {seconds / self._num_steps * 1e3:.1f} ms, {share:.2%} of the step that runs meanwhile"


def benchmark_optimizer(experiment: Experiment) -> optax.GradientTransformation:
    """Return the optimizer, that of a run but for a learning rate of its own for embeddings, which the peer lacks."""
    training = experiment.config.training
    return make_optimizer(clip_norm=training.gradient_clip, weight_decay=training.weight_decay)


def optimizer_fields(experiment: Experiment) -> dict[str, float]:
    """Return the same of the peer's job."""
    training = experiment.config.training
    return {
        "learning_rate": float(RATE),
        "weight_decay": training.weight_decay,
        "clip_norm": training.gradient_clip,
    }


def compare_losses(
    name: str, model: Model, loss_of: Callable[[T5], jax.Array], outputs: Mapping[str, np.ndarray]
) -> str:
    """Compare our loss and the norm of its gradient with the peer's; Disagreement where they are not the same."""

    def loss(params: PyTree) -> jax.Array:
        return loss_of(nnx.merge(model.graphdef, params))

    value, gradients = jax.jit(jax.value_and_grad(loss))(model.params)
    ours = np.asarray([value, optax.global_norm(gradients)])
    theirs = np.asarray([outputs["loss"], outputs["gradient_norm"]], np.float64).reshape(-1)
    if not theirs.all():
        raise Disagreement(f"{name}: the peer's loss and gradient norm are {theirs.tolist()}, where 0 compares nothing")
    error = float(np.max(np.abs(ours - theirs) / np.abs(theirs)))
    if not error <= LOSS_TOLERANCE[model.config.compute_dtype]:
        raise Disagreement(f"{name}: loss and gradient norm are {ours.tolist()}, the peer's {theirs.tolist()}")
    return f"loss and gradient norm equal the peer's within {error:.1e}"


def count_choices(choices: TargetChoices) -> int:
    """Return how many choices the targets of a batch have."""
    wide = int((choices.nodes >= 0).sum())
    return wide if choices.narrow is None else wide + count_choices(choices.narrow)
