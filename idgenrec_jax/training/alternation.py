"""Rounds and phases: the alternating training of ID generator and recommender, resumable at any step.

The run is a list of phases. A cursor (phase, epoch, step) names the next step to take; together with both train
states it is a checkpoint, and everything after it is a pure function of the checkpoint, the configuration and the
data. What ends a phase (new IDs, a validation) is done again when a run was killed within it.
"""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Bool

from idgenrec_jax.config import Config, TrainingConfig
from idgenrec_jax.data.batches import PromptSource
from idgenrec_jax.data.id_batches import IdBatches
from idgenrec_jax.data.packing import PackedBatches
from idgenrec_jax.errors import InputError
from idgenrec_jax.ids.rounds import RoundIds
from idgenrec_jax.processes import from_main, put
from idgenrec_jax.progress import Progress
from idgenrec_jax.sharding import batch_devices, replicated
from idgenrec_jax.training.checkpoints import Checkpoints
from idgenrec_jax.training.epochs import ID, RECOMMENDER, WARM_START, Epochs
from idgenrec_jax.training.optimizer import make_optimizer, warmup_linear_decay
from idgenrec_jax.training.records import MetricsLog
from idgenrec_jax.training.steps import (
    IdStep,
    RecommenderStep,
    TrainState,
    compiler_options,
    make_id_step,
    make_recommender_step,
    place_train_state,
    seed_key,
)

SELECTION_METRIC = "ndcg@10"
RANKS = "target_ranks"
"""The key of every user's rank at the best validation, in the description of its checkpoint."""
FIRST_STEP = "first training step done"
"""The log line from which on the device is at work; what is before it is start-up."""


class Validation(NamedTuple):
    """A validation: mean loss of the targets' tokens in nats, metrics, and each user's rank of the target, from 0.

    The rank is -1 where the target is not among the results.
    """

    loss: float
    metrics: dict[str, float]
    ranks: list[int]


Validate = Callable[[Any, PromptSource, str], Validation]


class Interrupted(Exception):
    """The run was asked to stop; its state is saved."""


@dataclasses.dataclass(frozen=True)
class Phase:
    """A stretch of training of one model; `round` counts from 1, the warm start is round 0."""

    kind: str
    round: int
    epochs: int

    @property
    def title(self) -> str:
        """Name for progress lines."""
        return "warm start" if self.kind == WARM_START else f"round {self.round}, {self.kind} phase"


def phases(config: Config, *, pretrained_generator: bool) -> tuple[Phase, ...]:
    """Return the phases of a run; the first makes the IDs of round 0, without training where none is needed."""
    training = config.training
    needs_words = not pretrained_generator and (training.id_epochs > 0 or not config.ids.table)
    result = [Phase(WARM_START, 0, training.warm_start_epochs if needs_words else 0)]
    for number in range(1, training.rounds + 1):
        id_phase = [Phase(ID, number, training.id_epochs)] if training.id_epochs else []
        recommender_phase = [Phase(RECOMMENDER, number, training.recommender_epochs)]
        first = training.order == "id_first"
        result += id_phase + recommender_phase if first else recommender_phase + id_phase
    return tuple(result)


def configured_optimizer(training: TrainingConfig) -> optax.GradientTransformation:
    """Return the optimizer of all phases."""
    return make_optimizer(
        clip_norm=training.gradient_clip,
        weight_decay=training.weight_decay,
        embedding_factor=training.embedding_learning_rate_factor,
    )


def make_steps(
    config: Config,
    optimizer: optax.GradientTransformation,
    *,
    generator: nnx.GraphDef,
    recommender: nnx.GraphDef,
    no_embedding: Bool[Array, " vocab"],
    places: dict[str, Any],
) -> tuple[RecommenderStep, IdStep, RecommenderStep]:
    """Return the steps of the warm start, of ID phases and of recommender phases.

    `places` are the shardings of the states of "generator" and "recommender".
    """
    rematerialise = config.id_generator.rematerialise, config.recommender.rematerialise
    warm_start, recommend = (
        make_recommender_step(
            graphdef,
            optimizer,
            accumulation=config.training.gradient_accumulation,
            state_sharding=places[name],
            compiler_options=compiler_options(layers),
        )
        for name, graphdef, layers in zip(
            ("generator", "recommender"), (generator, recommender), rematerialise, strict=True
        )
    )
    write = make_id_step(
        generator,
        recommender,
        optimizer,
        no_embedding,
        config.ids.soft_length,
        chunks=config.training.id_chunks,
        state_sharding=places["generator"],
        compiler_options=compiler_options(*rematerialise),
    )
    return warm_start, write, recommend


@dataclasses.dataclass
class RunState:
    """Everything that changes during a run; `to_meta` is the part that is not arrays."""

    generator: TrainState
    recommender: TrainState
    phase: int = 0
    epoch: int = 0
    step: int = 0
    global_step: int = 0
    saves: int = 0
    validation_due: bool = False
    # On the device within an epoch.
    loss_sum: float | jax.Array = 0.0
    id_round: int = -1
    best: dict[str, Any] | None = None
    misses: int = 0
    records: int = 0
    seconds: float = 0.0

    def to_meta(self) -> dict[str, Any]:
        """Return the fields that are plain JSON."""
        names = [field.name for field in dataclasses.fields(self) if field.name not in ("generator", "recommender")]
        return {name: getattr(self, name) for name in names}

    def arrays(self) -> dict[str, TrainState]:
        """Return the fields that are arrays."""
        return {"generator": self.generator, "recommender": self.recommender}


class Alternation:
    """Trains both models by the configured phases and keeps the best by validation NDCG@10."""

    def __init__(
        self,
        config: Config,
        ids: RoundIds,
        *,
        workdir: Path,
        generator: tuple[nnx.GraphDef, Any],
        recommender: tuple[nnx.GraphDef, Any],
        vocab_size: int,
        pretrained_generator: bool,
        validate: Validate,
        should_stop: Callable[[], bool],
        place_batch: Callable[[Any], Any],
    ):
        """Prepare the run in `workdir`, from its newest whole checkpoint where there is one.

        `generator` and `recommender` are (graphdef, params) already placed on the mesh; the params are donated.
        `validate(recommender params, prompts, title)` ranks the validation split;
        `place_batch` puts a numpy batch on the mesh.
        """
        self._config, self._ids = config, ids
        self._validate, self._should_stop, self._place_batch = validate, should_stop, place_batch
        self._phases = phases(config, pretrained_generator=pretrained_generator)
        self._latest = Checkpoints(workdir / "checkpoints" / "latest", keep=2)
        self._best = Checkpoints(workdir / "checkpoints" / "best", keep=2)
        training = config.training
        self._optimizer = configured_optimizer(training)
        self.state = RunState(*(place_train_state(params, self._optimizer) for _, params in (generator, recommender)))
        self._resume()
        self._log = MetricsLog(workdir / "metrics.jsonl", records=self.state.records)
        self._created, self._has_stepped = time.monotonic(), False
        self._clock = self._created - self.state.seconds
        self._saved_at = self._created
        places = {name: _shardings(state) for name, state in self.state.arrays().items()}
        self._generator_step, self._id_step, self._recommender_step = make_steps(
            config,
            self._optimizer,
            generator=generator[0],
            recommender=recommender[0],
            no_embedding=jnp.asarray(ids.no_embedding(vocab_size)),
            places=places,
        )
        self._epochs = Epochs(config, ids, row_multiple=batch_devices(_mesh(recommender[1])))
        if training.id_epochs and not pretrained_generator and not training.warm_start_epochs:
            logging.warning(
                "--config.training.warm_start_epochs=0: a random ID generator writes empty IDs, from which an ID phase "
                "learns nothing; expected at least a few epochs"
            )
        kinds = (WARM_START, ID, RECOMMENDER)
        self._replicated = replicated(_mesh(recommender[1]))
        seeds = {kind: len(kinds) * training.seed + index for index, kind in enumerate(kinds)}
        self._keys = jax.jit(lambda: jax.tree.map(seed_key, seeds), out_shardings=self._replicated)()

    def run(self) -> dict[str, Any]:
        """Train to the end and return the description of the best state: step, round, phase, id_round, metrics.

        Raises:
            Interrupted: `should_stop` said so; the state was saved.
        """
        every = self._config.training.validate_every_epochs
        while self.state.phase < len(self._phases) and not self._patience_spent():
            phase = self._phases[self.state.phase]
            if self.state.validation_due:
                self._validate_now(phase)
                self.state.validation_due = False
            elif self.state.epoch < phase.epochs:
                self._train_epoch(phase)
                within = phase.kind == RECOMMENDER and every and self.state.epoch < phase.epochs
                self.state.validation_due = bool(within) and self.state.epoch % every == 0
                # Short epochs would take longer to save than to train. One that is validated is always saved before.
                is_validated = self.state.validation_due or self.state.epoch == phase.epochs
                if not is_validated and not self._save_is_due():
                    continue
            else:
                self._end_phase(phase)
            self._save()
        return self.state.best

    def best_params(self) -> dict[str, Any]:
        """Return the parameters of both models at the best validation, as {"generator", "recommender"}.

        Raises:
            InputError: that checkpoint is no longer whole.
        """
        like = {name: state.params for name, state in self.state.arrays().items()}
        return self._best.restore(self._best.require(self.state.best["step"]), like)

    def best_ranks(self) -> list[int]:
        """Return every user's rank of the target at the best validation, from 0; -1: not among the results."""
        return self._best.meta(self.state.best["step"])[RANKS]

    @property
    def seconds(self) -> float:
        """Seconds of training so far, earlier sittings included."""
        return time.monotonic() - self._clock

    def _resume(self) -> None:
        for step in reversed(self._latest.steps()):
            meta = self._latest.meta(step)
            arrays = self._latest.restore(step, self.state.arrays())
            self.state = RunState(**arrays, **meta)
            if self.state.id_round >= 0:
                self._ids.load(self.state.id_round)
            where = {name: meta[name] for name in ("phase", "epoch", "step")}
            logging.info("resuming from step %d: %s", meta["global_step"], where)
            return

    def _save_is_due(self) -> bool:
        return from_main(lambda: time.monotonic() - self._saved_at >= self._config.training.checkpoint_every_seconds)

    def _save(self) -> None:
        self.state.records = self._log.records
        self.state.seconds = self.seconds
        self.state.saves += 1
        meta = self.state.to_meta() | {"loss_sum": float(jax.device_get(self.state.loss_sum))}
        self._latest.save(self.state.saves, self.state.arrays(), meta)
        self._saved_at = time.monotonic()

    def _patience_spent(self) -> bool:
        patience = self._config.training.early_stop_patience
        return bool(patience) and self.state.misses >= patience

    def _train_epoch(self, phase: Phase) -> None:
        epoch_number = self.state.epoch + 1
        batches = self._epochs.batches(
            phase.kind,
            self.state.id_round,
            self._epochs_before(phase) + self.state.epoch,
            is_last=epoch_number == phase.epochs,
        )
        total = len(batches)
        progress = Progress(f"{phase.title}, epoch {epoch_number}/{phase.epochs}", total, "step", done=self.state.step)
        every = self._config.training.checkpoint_every_steps
        self.state.loss_sum = self._put_scalar(self.state.loss_sum)
        while self.state.step < total:
            self._train_step(phase, batches, total)
            progress.update(self.state.step)
            stop = self._should_stop()
            if stop or (every and self.state.step % every == 0 and self.state.step < total):
                self._save()
            if stop:
                raise Interrupted
        loss = float(jax.device_get(self.state.loss_sum)) / max(total, 1)
        if not np.isfinite(loss):
            raise InputError(f"{phase.title}, epoch {epoch_number}: the loss is {loss}; lower the learning rate")
        progress.close(f"loss {loss:.4f}")
        self.state.epoch, self.state.step, self.state.loss_sum = epoch_number, 0, 0.0
        self._record(phase, "train", {"loss": loss})

    def _train_step(self, phase: Phase, batches: PackedBatches | IdBatches, total: int) -> None:
        state = self.state
        rate = self._put_scalar(self._learning_rate(phase, (state.step + 0.5) / total))
        batch = self._place_batch(batches.batch(state.step))
        key = self._keys[phase.kind]
        if phase.kind == RECOMMENDER:
            state.recommender, metrics = self._recommender_step(state.recommender, batch, rate, key)
        elif phase.kind == ID:
            state.generator, metrics = self._id_step(state.generator, state.recommender.params, batch, rate, key)
        else:
            state.generator, metrics = self._generator_step(state.generator, batch, rate, key)
        if not self._has_stepped:
            jax.block_until_ready(metrics)
            logging.info("%s, %.1f s after the models were ready", FIRST_STEP, time.monotonic() - self._created)
            self._has_stepped = True
        state.loss_sum = state.loss_sum + metrics["loss"]
        state.step += 1
        state.global_step += 1

    def _put_scalar(self, value: float) -> jax.Array:
        """A float32 on every device of the mesh."""
        return put(np.float32(value), self._replicated)

    def _learning_rate(self, phase: Phase, share_of_epoch: float) -> float:
        """One schedule per kind of phase, over all its phases of the run."""
        training = self._config.training
        peaks = {
            WARM_START: training.warm_start_learning_rate,
            ID: training.id_learning_rate,
            RECOMMENDER: training.recommender_learning_rate,
        }
        total = sum(other.epochs for other in self._phases if other.kind == phase.kind)
        progress = (self._epochs_before(phase) + self.state.epoch + share_of_epoch) / total
        return warmup_linear_decay(progress, peaks[phase.kind], training.warmup_fraction)

    def _epochs_before(self, phase: Phase) -> int:
        return sum(other.epochs for other in self._phases[: self.state.phase] if other.kind == phase.kind)

    def _end_phase(self, phase: Phase) -> None:
        if phase.kind != RECOMMENDER:
            given = self._ids.given if phase.kind == WARM_START else None
            self._ids.regenerate(
                self.state.generator.params, phase.round, on_progress=self._id_progress(phase), given=given
            )
            self.state.id_round = phase.round
        if phase.kind == WARM_START:
            # The ID phases follow another objective: they start with fresh moments.
            self.state.generator = place_train_state(self.state.generator.params, self._optimizer)
        else:
            self._validate_now(phase)
        self.state.phase, self.state.epoch = self.state.phase + 1, 0

    def _id_progress(self, phase: Phase) -> Callable[[int, int], None]:
        progress: Progress | None = None

        def report(done: int, total: int) -> None:
            nonlocal progress
            if progress is None:
                progress = Progress(f"{phase.title}: writing IDs", total, "text")
            progress.update(done, total=total)
            self.check_stop()

        return report

    def check_stop(self) -> None:
        """Raise `Interrupted` when the run was asked to stop; outside an epoch its end is already saved."""
        if self._should_stop():
            raise Interrupted

    def _validate_now(self, phase: Phase) -> None:
        source = self._ids.source(max_history=self._config.data.max_history, evaluation=True)
        loss, metrics, ranks = self._validate(self.state.recommender.params, source, f"{phase.title}: validation")
        self._record(phase, "validation", {"loss": loss, **metrics})
        value = metrics[SELECTION_METRIC]
        logging.info("%s, epoch %d: validation %s", phase.title, self.state.epoch, _brief(metrics))
        if self.state.best is not None and value <= self.state.best["metrics"][SELECTION_METRIC]:
            # New IDs are worse until the recommender has learned them, so ID phases do not count.
            self.state.misses += phase.kind == RECOMMENDER
            return
        self.state.misses = 0
        self.state.best = {
            "step": self.state.global_step,
            "round": phase.round,
            "phase": phase.kind,
            "epoch": self.state.epoch,
            "id_round": self.state.id_round,
            "metrics": metrics,
        }
        params = {name: state.params for name, state in self.state.arrays().items()}
        self._best.save(self.state.global_step, params, {**self.state.best, RANKS: ranks})

    def _record(self, phase: Phase, split: str, values: dict[str, float]) -> None:
        self._log.append(
            {
                "step": self.state.global_step,
                "round": phase.round,
                "phase": phase.kind,
                "epoch": self.state.epoch,
                "split": split,
                **values,
                "seconds": round(self.seconds, 3),
            }
        )


def _mesh(params: Any) -> Mesh:
    return jax.tree.leaves(params)[0].sharding.mesh


def _shardings(state: TrainState) -> Any:
    return jax.tree.map(lambda leaf: leaf.sharding, state)


def _brief(metrics: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
