"""What changes during a run, and what of it a checkpoint keeps beside the arrays."""

import dataclasses
from typing import Any

import jax

from idgenrec_jax import run_files
from idgenrec_jax.training.steps import TrainState


@dataclasses.dataclass
class RunState:
    """Everything that changes during a run; `to_meta` is the part that is not arrays."""

    id_generator: TrainState
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
        names = [field.name for field in dataclasses.fields(self) if field.name not in run_files.CHECKPOINT_NAMES]
        return {name: getattr(self, name) for name in names}

    def arrays(self) -> dict[str, TrainState]:
        """Return the fields that are arrays, under the names that checkpoints have for them."""
        return {saved: getattr(self, name) for name, saved in run_files.CHECKPOINT_NAMES.items()}
