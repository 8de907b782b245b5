"""Rounds and phases: the alternating training of ID generator and recommender, resumable at any step.

The run is a list of phases. A cursor (phase, epoch, step) names the next step to take; together with both train
states it is a checkpoint, and everything after it is a pure function of the checkpoint, the configuration and the
data. What ends a phase (new IDs, a validation) is done again when a run was killed within it.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax import nnx
from jaxtyping import Bool

from idgenrec_jax import run_files
from idgenrec_jax.config import Config
from idgenrec_jax.data.renderer import PromptRenderer
from idgenrec_jax.errors import InputError
from idgenrec_jax.ids.rounds import RoundIds
from idgenrec_jax.ids.table import IdTable
from idgenrec_jax.processes import from_main, put
from idgenrec_jax.progress import Progress
from idgenrec_jax.sharding import replicated
from idgenrec_jax.training.checkpoints import Checkpoints
from idgenrec_jax.training.choice_softmax import ChoiceTable
from idgenrec_jax.training.epochs import Batches, Epochs
from idgenrec_jax.training.id_phases import IdPhases, ValidationLoss
from idgenrec_jax.training.phases import ID, RECOMMENDER, WARM_START, Phase, epochs_before, learning_rate, phases
from idgenrec_jax.training.record_writers import writer_makers
from idgenrec_jax.training.records import MetricsLog
from idgenrec_jax.training.run_state import RunState
from idgenrec_jax.training.run_steps import configured_optimizer, make_steps
from idgenrec_jax.training.selection import Selection
from idgenrec_jax.training.step_records import StepRecords, check_finite, count_examples
from idgenrec_jax.training.steps import Metrics, TrainState, place_train_state, seed_key

FIRST_STEP = "first training step done"
"""The log line from which on the device is at work; what is before it is start-up."""


class Validation(NamedTuple):
    """A validation: mean loss in nats (see `losses`), metrics, and each user's rank of the target, from 0.

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
        validation_loss: ValidationLoss,
        should_stop: Callable[[], bool],
        place_batch: Callable[[Any], Any],
        restart_without_checkpoint: bool = False,
        log_to: Sequence[str] = (),
    ):
        """Prepare the run in `workdir`, from its newest whole checkpoint where there is one.

        `id_generator` and `recommender` are (graphdef, params) already placed on the mesh; the params are donated.
        `no_embedding` marks the tokens that leave no trace in a soft ID, `given_ids` are the user's own for round 0.
        `validate(recommender params, prompts, title)` ranks the validation split, `validation_loss(recommender params,
        prompts)` is the loss alone; `place_batch` puts a numpy batch on the mesh. `restart_without_checkpoint`: where
        all checkpoints are broken, begin again. `log_to` names the record writers beside metrics.jsonl.

        Raises:
            InputError: the checkpoints are broken or of another version.
        """
        self._config, self._ids, self._epochs, self._given_ids = config, ids, epochs, given_ids
        self._validate, self._should_stop, self._place_batch = validate, should_stop, place_batch
        self._phases = phases(config, pretrained_id_generator=pretrained_id_generator)
        training = config.training
        self._replicated = replicated(jax.tree.leaves(recommender[1])[0].sharding.mesh)
        self._optimizer = configured_optimizer(training)
        self.state = RunState(
            place_train_state(id_generator[1], self._optimizer),
            place_train_state(recommender[1], self._optimizer, is_averaged=bool(training.recommender_average_decay)),
        )
        self._steps = make_steps(
            config,
            self._optimizer,
            id_generator=id_generator[0],
            recommender=recommender[0],
            no_embedding=jnp.asarray(no_embedding),
            places={name: _shardings(getattr(self.state, name)) for name in run_files.CHECKPOINT_NAMES},
        )
        self._id_phases = IdPhases(
            config,
            self._phases,
            ids,
            epochs,
            workdir=workdir,
            id_generator=id_generator[0],
            recommender=recommender[0],
            no_embedding=jnp.asarray(no_embedding),
            place_batch=place_batch,
            validation_loss=validation_loss,
            check_stop=self.check_stop,
        )
        kinds = (WARM_START, ID, RECOMMENDER)
        seeds = {kind: len(kinds) * training.seed + index for index, kind in enumerate(kinds)}
        self._keys = jax.jit(lambda: jax.tree.map(seed_key, seeds), out_shardings=self._replicated)()

        self._latest = Checkpoints(workdir / run_files.LATEST_CHECKPOINTS, keep=2)
        self._selection = Selection(workdir)
        self._resume(restart_without_checkpoint)
        self._choices_of_round: tuple[int, ChoiceTable | None] = (-1, None)
        self._log = MetricsLog(
            workdir / run_files.METRICS, records=self.state.records, writers=writer_makers(log_to, workdir, config)
        )
        self._step_records = StepRecords(training.log_every_steps, self._append)
        self._created = self._saved_at = time.monotonic()
        self._clock = self._created - self.state.seconds
        self._has_stepped = False

    def run(self) -> dict[str, Any]:
        """Train to the end and return the description of the best state: step, round, phase, id_round, metrics.

        Raises:
            Interrupted: `should_stop` said so; the state was saved.
        """
        with self._log:
            while self.state.phase < len(self._phases) and not self._patience_spent():
                self._advance(self._phases[self.state.phase])
        return self.state.best_validation()

    def best_params(self) -> dict[str, Any]:
        """Return the parameters of both models at the best validation, as {"id_generator", "recommender"}."""
        return self._selection.params(self.state)

    def best_ranks(self) -> list[int]:
        """Return every user's rank of the target at the best validation, from 0; -1: not among the results."""
        return self._selection.ranks(self.state)

    @property
    def seconds(self) -> float:
        """Seconds of training so far, earlier sittings included."""
        return time.monotonic() - self._clock

    def check_stop(self) -> None:
        """Raise `Interrupted` when the run was asked to stop; outside an epoch its end is already saved."""
        if self._should_stop():
            raise Interrupted

    # What comes next, from the largest part to the smallest: phase, epoch, step.

    def _advance(self, phase: Phase) -> None:
        """Take a phase one part further: an epoch, a validation within it, or what ends it; then save."""
        every = self._config.training.validate_every_epochs
        if self.state.validation_due:
            self._validate_now(phase)
            self.state.validation_due = False
        elif self.state.epoch < phase.epochs:
            self._train_epoch(phase)
            may_validate = phase.kind == RECOMMENDER and phase.is_validated
            within = may_validate and every and self.state.epoch < phase.epochs
            self.state.validation_due = bool(within) and self.state.epoch % every == 0
            # Short epochs would take longer to save than to train. One that is validated is always saved before.
            is_validated = self.state.validation_due or self.state.epoch == phase.epochs
            if not is_validated and not self._save_is_due():
                return
        else:
            self._end_phase(phase)
        self._save()

    def _train_epoch(self, phase: Phase) -> None:
        training, epoch_number = self._config.training, self.state.epoch + 1
        batches = self._epochs.batches(
            phase.epoch_kind,
            self.state.id_round,
            epochs_before(self._phases, self.state.phase) + self.state.epoch,
            is_last=epoch_number == phase.epochs,
            check_stop=self._stop_before_epoch,
        )
        num_steps = len(batches)
        title = f"{phase.title}, epoch {epoch_number}/{phase.epochs}"
        progress = Progress(title, num_steps, "step", done=self.state.step)
        every = training.checkpoint_every_steps
        self.state.loss_sum = self._put_scalar(self.state.loss_sum)
        self._step_records.restart_clock()
        while self.state.step < num_steps:
            self._train_step(phase, batches)
            progress.update(self.state.step)
            stop = self._should_stop()
            if stop or (every and self.state.step % every == 0 and self.state.step < num_steps):
                self._save()
            if stop:
                raise Interrupted
        self._step_records.flush()
        loss = float(jax.device_get(self.state.loss_sum)) / max(num_steps, 1)
        check_finite("loss", loss, phase=phase.kind, where=f"{phase.title}, epoch {epoch_number}")
        progress.close(f"loss {loss:.4f}")
        self.state.epoch, self.state.step, self.state.loss_sum = epoch_number, 0, 0.0
        self._append({**self._place(phase, self.state.epoch, "train"), "loss": loss})

    def _stop_before_epoch(self) -> None:
        """Save and raise `Interrupted` when the run was asked to stop."""
        # Several processes ask each other, which they must do equally often: those go on to their next step.
        if jax.process_count() == 1 and self._should_stop():
            self._save()
            raise Interrupted

    def _choices(self) -> ChoiceTable | None:
        """The choices that the current IDs leave, on every device; None where losses are over the vocabulary."""
        if self._choices_of_round[0] != self.state.id_round:
            choices = self._epochs.choices()
            self._choices_of_round = self.state.id_round, choices and put(choices, self._replicated)
        return self._choices_of_round[1]

    def _train_step(self, phase: Phase, batches: Batches) -> None:
        state = self.state
        epochs = state.epoch + (state.step + 0.5) / len(batches)
        rate = learning_rate(self._config.training, self._phases, state.phase, epochs)
        batch = batches.batch(state.step)
        rest: tuple[Any, ...] = self._place_batch(batch), self._put_scalar(rate), self._keys[phase.kind]
        if phase.kind != WARM_START:
            rest = (*rest, self._choices())
        step = self._steps[phase.kind]
        if phase.kind == RECOMMENDER:
            state.recommender, metrics = step(state.recommender, *rest)
        elif phase.kind == ID:
            more = self._id_phases.step_arguments(state, epochs)
            temperature = None if more.temperature is None else self._put_scalar(more.temperature)
            state.id_generator, metrics = step(
                state.id_generator, state.recommender.result, *rest, temperature, more.reference
            )
        else:
            state.id_generator, metrics = step(state.id_generator, *rest)
        self._note_first_step(metrics)
        state.loss_sum = state.loss_sum + metrics["loss"]
        state.step += 1
        state.global_step += 1
        self._step_records.add(
            self._place(phase, state.epoch + 1, "train_step"),
            metrics,
            title=f"{phase.title}, epoch {state.epoch + 1}",
            learning_rate=rate,
            examples=count_examples(batch),
        )

    def _end_phase(self, phase: Phase) -> None:
        if phase.kind == ID:
            record = self._id_phases.end(phase, self.state, self._choices())
            self.state.id_round = phase.round
            self._append({**self._place(phase, self.state.epoch, "ids"), **record})
        if phase.kind == WARM_START:
            params = self.state.id_generator.params
            told: dict[str, Any] = {"title": phase.title, "check_stop": self.check_stop}
            table = self._given_ids or self._ids.new_table(params, **told)
            self._ids.keep(table, phase.round, params, **told)
            self.state.id_round = phase.round
            # The ID phases follow another objective: they start with fresh moments.
            self.state.id_generator = place_train_state(self.state.id_generator.params, self._optimizer)
        elif phase.is_validated:
            self._validate_now(phase)
        self.state.phase, self.state.epoch = self.state.phase + 1, 0

    def _validate_now(self, phase: Phase) -> None:
        renderer = self._ids.renderer(max_history=self._config.data.max_history, evaluation=True)
        loss, metrics, ranks = self._validate(self.state.recommender.result, renderer, f"{phase.title}: validation")
        self._append({**self._place(phase, self.state.epoch, "validation"), "loss": loss, **metrics})
        self._selection.offer(self.state, phase, metrics, ranks)

    def _patience_spent(self) -> bool:
        patience = self._config.training.early_stop_patience
        return bool(patience) and self.state.misses >= patience

    # What a run can be taken up from.

    def _resume(self, restart_without_checkpoint: bool) -> None:
        try:
            number = self._latest.newest(
                remedy="restore one of them, or give --restart_without_checkpoint to train from the beginning"
            )
        except InputError as error:
            if not restart_without_checkpoint:
                raise
            logging.warning("training from the beginning (--restart_without_checkpoint): %s", error)
            return
        if number is None:
            return
        meta = self._latest.meta(number)
        arrays = self._latest.restore(number, self.state.arrays())
        self.state = self.state.with_meta(meta, arrays, source=self._latest.path(number))
        if self.state.id_round >= 0:
            self._ids.load(self.state.id_round)
        where = {name: meta[name] for name in ("phase", "epoch", "step")}
        logging.info("resuming from step %d: %s", self.state.global_step, where)

    def _save_is_due(self) -> bool:
        return from_main(lambda: time.monotonic() - self._saved_at >= self._config.training.checkpoint_every_seconds)

    def _save(self) -> None:
        # All that was done before the checkpoint is recorded before it.
        self._step_records.flush()
        self.state.records = self._log.records
        self.state.seconds = self.seconds
        self.state.saves += 1
        self._latest.save(self.state.saves, self.state.arrays(), self.state.to_meta())
        self._saved_at = time.monotonic()
        self._step_records.restart_clock()

    # What is told of a run.

    def _place(self, phase: Phase, epoch: int, split: str) -> dict[str, Any]:
        """What every record begins with."""
        step = self.state.global_step
        return {"step": step, "round": phase.round, "phase": phase.kind, "epoch": epoch, "split": split}

    def _append(self, record: dict[str, Any]) -> None:
        self._log.append({**record, "seconds": round(self.seconds, 3)})

    def _note_first_step(self, metrics: Metrics) -> None:
        if not self._has_stepped:
            jax.block_until_ready(metrics)
            logging.info("%s, %.1f s after the models were ready", FIRST_STEP, time.monotonic() - self._created)
            self._has_stepped = True

    def _put_scalar(self, value: float | jax.Array) -> jax.Array:
        """A float32 on every device of the mesh."""
        return put(np.float32(value), self._replicated)


def _shardings(state: TrainState) -> Any:
    return jax.tree.map(lambda leaf: leaf.sharding, state)
