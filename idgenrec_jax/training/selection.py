"""The best state of a run: chosen on validation, kept as a checkpoint with every user's rank."""

from pathlib import Path
from typing import Any

from absl import logging

from idgenrec_jax import run_files
from idgenrec_jax.training.checkpoints import Checkpoints
from idgenrec_jax.training.phases import RECOMMENDER, Phase
from idgenrec_jax.training.run_state import RunState

BEST_RANKS = "target_ranks"
"""The key of every user's rank at the best validation, in the description of its checkpoint."""
SELECTED = ("step", "round", "phase", "epoch", "id_round")
"""What is told of the best state: where in the run it was, and the round of its IDs."""


class Selection:
    """Keeps the parameters of the best validation so far."""

    def __init__(self, workdir: Path):
        """Keep them in the workdir, the ones before as well: the newest checkpoint of the run may be lost."""
        self._checkpoints = Checkpoints(workdir / run_files.BEST_CHECKPOINTS, keep=2)

    def offer(self, state: RunState, phase: Phase, metrics: dict[str, float], ranks: list[int]) -> None:
        """Save `state` where its validation `metrics` are the best, else count a miss."""
        brief = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        logging.info("%s, epoch %d: validation %s", phase.title, state.epoch, brief)
        metric = run_files.SELECTION_METRIC
        if state.best is not None and metrics[metric] <= state.best["metrics"][metric]:
            # New IDs are worse until the recommender has learned them, so ID phases do not count.
            state.misses += phase.kind == RECOMMENDER
            return
        state.misses = 0
        place = state.global_step, phase.round, phase.kind, state.epoch, state.id_round
        state.best = dict(zip(SELECTED, place, strict=True)) | {"metrics": metrics}
        self._checkpoints.save(state.global_step, state.params(), {**state.best, BEST_RANKS: ranks})

    def params(self, state: RunState) -> dict[str, Any]:
        """Return the parameters of both models at the best validation, as {"id_generator", "recommender"}.

        Raises:
            InputError: that checkpoint is no longer whole.
        """
        number = self._checkpoints.require(state.best_validation()["step"])
        saved = self._checkpoints.restore(number, state.params())
        return {name: saved[key] for name, key in run_files.CHECKPOINT_NAMES.items()}

    def ranks(self, state: RunState) -> list[int]:
        """Return every user's rank of the target at the best validation, from 0; -1: not among the results."""
        return self._checkpoints.meta(state.best_validation()["step"], required=(BEST_RANKS,))[BEST_RANKS]
