"""The phases of a run: what comes next, how long it lasts, and its learning rate."""

import dataclasses
from collections.abc import Sequence

from idgenrec_jax.config import Config, TrainingConfig
from idgenrec_jax.ids.schemes import has_own_ids
from idgenrec_jax.training.optimizer import warmup_linear_decay

WARM_START, ID, RECOMMENDER = "warm_start", "id", "recommender"
CAUSAL = "causal recommender"
"""What epochs of a recommender phase are called whose histories are causal."""


@dataclasses.dataclass(frozen=True)
class Phase:
    """A stretch of training of one model; `round` counts from 1, the warm start is round 0.

    `is_causal`: a recommender phase on windows of causal histories. `is_validated`: the model is then as it will be
    used.
    """

    kind: str
    round: int
    epochs: int
    is_causal: bool = False
    is_validated: bool = True

    @property
    def epoch_kind(self) -> str:
        """Which batches its epochs have."""
        return CAUSAL if self.is_causal else self.kind

    @property
    def title(self) -> str:
        """Name for progress lines."""
        if self.kind == WARM_START:
            # Without epochs it only makes the IDs of round 0.
            return "warm start" if self.epochs else f"round {self.round}"
        return f"round {self.round}, {self.kind} phase"


def phases(config: Config, *, pretrained_id_generator: bool) -> tuple[Phase, ...]:
    """Return the phases of a run; the first makes the IDs of round 0, without training where none is needed."""
    training = config.training
    needs_words = not pretrained_id_generator and (training.id_epochs > 0 or not has_own_ids(config.ids))
    result = [Phase(WARM_START, 0, training.warm_start_epochs if needs_words else 0)]
    for number in range(1, training.rounds + 1):
        id_phase = [Phase(ID, number, training.id_epochs)] if training.id_epochs else []
        recommender_phase = _recommender_phase(config, number, training.recommender_epochs)
        first = training.order == "id_first"
        result += id_phase + recommender_phase if first else recommender_phase + id_phase
    if training.final_recommender_epochs:
        result += _recommender_phase(config, training.rounds + 1, training.final_recommender_epochs)
    return tuple(result)


def _recommender_phase(config: Config, number: int, epochs: int) -> list[Phase]:
    """The recommender's part of a round, of so many epochs, and the epochs on whole histories behind them."""
    causal, whole = config.data.history == "causal", config.training.whole_epochs
    phase = [Phase(RECOMMENDER, number, epochs, is_causal=causal, is_validated=not whole)]
    return phase + [Phase(RECOMMENDER, number, whole)] if whole else phase


def epochs_before(phases: Sequence[Phase], number: int) -> int:
    """Return how many epochs the phases before number `number` (from 0) have that are of its kind."""
    return sum(phase.epochs for phase in phases[:number] if phase.kind == phases[number].kind)


def learning_rate(training: TrainingConfig, phases: Sequence[Phase], number: int, epochs: float) -> float:
    """Return the learning rate after so many `epochs`, in parts of one, of phase number `number` (from 0).

    There is one schedule for each kind of phase, over all its phases of the run.
    """
    kind = phases[number].kind
    peaks = {
        WARM_START: training.warm_start_learning_rate,
        ID: training.id_learning_rate,
        RECOMMENDER: training.recommender_learning_rate,
    }
    final = training.recommender_final_rate_fraction if kind == RECOMMENDER else 0.0
    return warmup_linear_decay(_progress(phases, number, epochs), peaks[kind], training.warmup_fraction, final)


def id_temperature(training: TrainingConfig, phases: Sequence[Phase], number: int, epochs: float) -> float:
    """Return the temperature of soft IDs after so many `epochs`, in parts of one, of ID phase number `number`.

    Its logarithm falls evenly from 0 over all ID phases of the run, as in UniGRec (arXiv 2601.17438).
    """
    return training.id_temperature ** _progress(phases, number, epochs)


def _progress(phases: Sequence[Phase], number: int, epochs: float) -> float:
    """Which share of the epochs of all phases of its kind is over, after so many of phase number `number`."""
    total = sum(phase.epochs for phase in phases if phase.kind == phases[number].kind)
    return (epochs_before(phases, number) + epochs) / total
