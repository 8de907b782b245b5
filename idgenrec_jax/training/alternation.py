"""Rounds and phases: the alternating training of ID generator and recommender, resumable at any step.

The run is a list of phases. A cursor (phase, epoch, step) names the next step to take; together with both train
states it is a checkpoint, and everything after it is a pure function of the checkpoint, the configuration and the
data. What ends a phase (new IDs, a validation) is done again when a run was killed within it.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Bool

from idgenrec_jax import run_files
from idgenrec_jax.config import Config
from idgenrec_jax.data.batches import PromptRenderer
from idgenrec_jax.data.id_batches import IdBatches
from idgenrec_jax.data.packing import PackedBatches
from idgenrec_jax.errors import InputError
from idgenrec_jax.ids.rounds import RoundIds
from idgenrec_jax.ids.table import IdTable
from idgenrec_jax.processes import from_main, put
from idgenrec_jax.progress import Progress
from idgenrec_jax.sharding import replicated
from idgenrec_jax.training.checkpoints import Checkpoints
from idgenrec_jax.training.epochs import Epochs
from idgenrec_jax.training.optimizer import warmup_linear_decay
from idgenrec_jax.training.phases import ID, RECOMMENDER, WARM_START, Phase, phases
from idgenrec_jax.training.records import MetricsLog
from idgenrec_jax.training.run_state import RunState
from idgenrec_jax.training.run_steps import configured_optimizer, make_steps
from idgenrec_jax.training.steps import (
    TrainState,
    place_train_state,
    seed_key,
)

BEST_RANKS = "target_ranks"
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


Validate = Callable[[Any, PromptRenderer, str], Validation]


class Interrupted(Exception):
    """The run was asked to stop; its state is saved."""


class Alternation:
    """Trains both models by the configured phases and keeps the best by validation NDCG@10."""

    def __init__(
        self,
        config: Config,
        ids: RoundIds,
        epochs: Epochs,
        *,
        workdir: Path,
        id_generator: tuple[nnx.GraphDef, Any],
        recommender: tuple[nnx.GraphDef, Any],
        no_embedding: Bool[np.ndarray, " vocab"],
        given_ids: IdTable | None,
        pretrained_id_generator: bool,
        validate: Validate,
        should_stop: Callable[[], bool],
        place_batch: Callable[[Any], Any],
    ):
        """Prepare the run in `workdir`, from its newest whole checkpoint where there is one.

        `generator` and `recommender` are (graphdef, params) already placed on the mesh; the params are donated.
        `no_embedding` marks the tokens that leave no trace in a soft ID, `given_ids` are the user's own for round 0.
        `validate(recommender params, prompts, title)` ranks the validation split;
        `place_batch` puts a numpy batch on the mesh.
        """
        self._config, self._ids, self._epochs, self._given_ids = config, ids, epochs, given_ids
        self._validate, self._should_stop, self._place_batch = validate, should_stop, place_batch
        self._phases = phases(config, pretrained_id_generator=pretrained_id_generator)
        self._latest = Checkpoints(workdir / run_files.LATEST_CHECKPOINTS, keep=2)
        self._best = Checkpoints(workdir / run_files.BEST_CHECKPOINTS, keep=2)
        training = config.training
        self._optimizer = configured_optimizer(training)
        states = (place_train_state(params, self._optimizer) for _, params in (id_generator, recommender))
        self.state = RunState(*states)
        self._resume()
        self._log = MetricsLog(workdir / run_files.METRICS, records=self.state.records)
        self._created, self._has_stepped = time.monotonic(), False
        self._clock = self._created - self.state.seconds
        self._saved_at = self._created
        places = {name: _shardings(getattr(self.state, name)) for name in run_files.CHECKPOINT_NAMES}
        self._warm_start_step, self._id_step, self._recommender_step = make_steps(
            config,
            self._optimizer,
            id_generator=id_generator[0],
            recommender=recommender[0],
            no_embedding=jnp.asarray(no_embedding),
            places=places,
        )
        if training.id_epochs and not pretrained_id_generator and not training.warm_start_epochs:
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
        """Return the parameters of both models at the best validation, as {"id_generator", "recommender"}.

        Raises:
            InputError: that checkpoint is no longer whole.
        """
        like = {name: state.params for name, state in self.state.arrays().items()}
        saved = self._best.restore(self._best.require(self.state.best["step"]), like)
        return {name: saved[key] for name, key in run_files.CHECKPOINT_NAMES.items()}

    def best_ranks(self) -> list[int]:
        """Return every user's rank of the target at the best validation, from 0; -1: not among the results."""
        return self._best.meta(self.state.best["step"])[BEST_RANKS]

    @property
    def seconds(self) -> float:
        """Seconds of training so far, earlier sittings included."""
        return time.monotonic() - self._clock

    def _resume(self) -> None:
        for step in reversed(self._latest.steps()):
            meta = self._latest.meta(step)
            arrays = self._latest.restore(step, self.state.arrays())
            fields = {name: arrays[key] for name, key in run_files.CHECKPOINT_NAMES.items()}
            self.state = RunState(**fields, **meta)
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
            check_stop=self._stop_before_epoch,
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

    def _stop_before_epoch(self) -> None:
        """Save and raise `Interrupted` when the run was asked to stop."""
        # Several processes ask each other, which they must do equally often: those go on to their next step.
        if jax.process_count() == 1 and self._should_stop():
            self._save()
            raise Interrupted

    def _train_step(self, phase: Phase, batches: PackedBatches | IdBatches, total: int) -> None:
        state = self.state
        rate = self._put_scalar(self._learning_rate(phase, (state.step + 0.5) / total))
        batch = self._place_batch(batches.batch(state.step))
        key = self._keys[phase.kind]
        if phase.kind == RECOMMENDER:
            state.recommender, metrics = self._recommender_step(state.recommender, batch, rate, key)
        elif phase.kind == ID:
            state.id_generator, metrics = self._id_step(state.id_generator, state.recommender.params, batch, rate, key)
        else:
            state.id_generator, metrics = self._warm_start_step(state.id_generator, batch, rate, key)
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
            given = self._given_ids if phase.kind == WARM_START else None
            self._ids.regenerate(
                self.state.id_generator.params, phase.round, on_progress=self._id_progress(phase), given=given
            )
            self.state.id_round = phase.round
        if phase.kind == WARM_START:
            # The ID phases follow another objective: they start with fresh moments.
            self.state.id_generator = place_train_state(self.state.id_generator.params, self._optimizer)
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
        renderer = self._ids.renderer(max_history=self._config.data.max_history, evaluation=True)
        loss, metrics, ranks = self._validate(self.state.recommender.params, renderer, f"{phase.title}: validation")
        self._record(phase, "validation", {"loss": loss, **metrics})
        value = metrics[run_files.SELECTION_METRIC]
        logging.info("%s, epoch %d: validation %s", phase.title, self.state.epoch, _brief(metrics))
        if self.state.best is not None and value <= self.state.best["metrics"][run_files.SELECTION_METRIC]:
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
        self._best.save(self.state.global_step, params, {**self.state.best, BEST_RANKS: ranks})

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
