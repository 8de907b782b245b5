"""What surrounds the steps of an ID phase: the temperature, the leash, which new IDs are taken, and what was gained."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool

from idgenrec_jax import run_files
from idgenrec_jax.config import Config
from idgenrec_jax.data.renderer import PromptRenderer
from idgenrec_jax.ids.rounds import RoundIds
from idgenrec_jax.ids.table import IdTable
from idgenrec_jax.processes import readable
from idgenrec_jax.progress import progress_of_unknown
from idgenrec_jax.training.acceptance import CandidateScorer, accepted_table
from idgenrec_jax.training.checkpoints import Checkpoints
from idgenrec_jax.training.choice_softmax import ChoiceTable
from idgenrec_jax.training.epochs import Epochs
from idgenrec_jax.training.id_measures import IdMeasures, changed, longest_id
from idgenrec_jax.training.phases import Phase, id_temperature
from idgenrec_jax.training.run_state import RunState

ValidationLoss = Callable[[Any, PromptRenderer], float]


class StepArguments(NamedTuple):
    """What an ID step is given beside its batch, where the configuration asks for it."""

    temperature: float | None = None
    reference: Any = None


class IdPhases:
    """The ID phases of a run."""

    def __init__(
        self,
        config: Config,
        phases: Sequence[Phase],
        ids: RoundIds,
        epochs: Epochs,
        *,
        workdir: Path,
        id_generator: nnx.GraphDef,
        recommender: nnx.GraphDef,
        no_embedding: Bool[Array, " vocab"],
        place_batch: Callable[[Any], Any],
        validation_loss: ValidationLoss,
        check_stop: Callable[[], None],
    ):
        """Prepare them; `validation_loss(recommender params, renderer)` is that of the validation split."""
        self._config, self._phases, self._ids, self._epochs = config, phases, ids, epochs
        self._validation_loss, self._check_stop = validation_loss, check_stop
        self._references = Checkpoints(workdir / run_files.LEASH_CHECKPOINTS, keep=1)
        self._reference: tuple[int, Any] | None = None

        def read(values: Any) -> Any:
            return jax.device_get(readable(values))

        self._scorer = CandidateScorer(
            recommender, batch_size=config.evaluation.batch_size, place_batch=place_batch, read=read
        )
        self._measures = IdMeasures(
            id_generator,
            recommender,
            no_embedding,
            soft_length=config.ids.soft_length,
            place_batch=place_batch,
            read=read,
        )

    def step_arguments(self, state: RunState, epochs: float) -> StepArguments:
        """Return those of the next step, after so many `epochs`, in parts of one, of the phase that `state` is in."""
        training = self._config.training
        temperature = None
        if training.id_temperature != 1.0:
            temperature = id_temperature(training, self._phases, state.phase, epochs)
        return StepArguments(temperature, self._held(state) if training.id_leash else None)

    def end(self, phase: Phase, state: RunState, choices: ChoiceTable | None) -> dict[str, Any]:
        """Give the items their new IDs; return what is recorded of the phase.

        That is how many IDs changed, and losses of the same recommender: on training examples by kind of ID in the
        histories, and on validation with the IDs before.
        """
        training, ids = self._config.training, self._ids
        generator, recommender = state.id_generator.params, state.recommender.result
        old = ids.table
        table = self._new_table(phase, state, choices)
        record: dict[str, Any] = changed(old.tokens, table.tokens)
        if training.id_measured_examples:
            batches = self._epochs.measured_batches(longest_id(old.tokens, table.tokens))
            losses = self._measures.losses(generator, recommender, batches, choices, old.tokens, table.tokens)
            record |= {f"loss_{kind}": value for kind, value in losses._asdict().items()}
            renderer = ids.renderer(max_history=self._config.data.max_history, evaluation=True)
            record["validation_loss_before"] = self._validation_loss(recommender, renderer)
        ids.keep(table, phase.round, generator, title=phase.title, check_stop=self._check_stop)
        return record

    def _new_table(self, phase: Phase, state: RunState, choices: ChoiceTable | None) -> IdTable:
        """The IDs after the phase: those that the ID generator writes, or those of them that are accepted."""
        generator = state.id_generator.params
        told: dict[str, Any] = {"title": phase.title, "check_stop": self._check_stop}
        if not self._config.ids.acceptance_examples:
            return self._ids.new_table(generator, **told)
        candidates = self._ids.candidates(generator, **told)
        # The configuration allows it over the catalogue alone.
        assert choices is not None
        with progress_of_unknown(f"{phase.title}: comparing IDs", "prompt", check=self._check_stop) as report:
            scored = self._scorer.score(
                state.recommender.result,
                self._ids.renderer(max_history=self._config.data.id_max_history),
                choices,
                candidates,
                num_examples=self._config.ids.acceptance_examples,
                seed=[self._config.training.seed, phase.round],
                on_progress=report,
            )
        return accepted_table(self._ids.table, scored)

    def _held(self, state: RunState) -> Any:
        """The ID generator's parameters before the phase; kept on the disk, for a run that goes on within it."""
        if self._reference is None or self._reference[0] != state.phase:
            params = state.id_generator.params
            if (state.epoch, state.step) == (0, 0):
                held = jax.tree.map(jnp.copy, params)
                self._references.save(state.phase, held, {})
            else:
                held = self._references.restore(self._references.require(state.phase), params)
            self._reference = state.phase, held
        return self._reference[1]
