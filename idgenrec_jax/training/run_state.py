"""What changes during a run, and what of it a checkpoint keeps beside the arrays."""

import dataclasses
import types
import typing
from pathlib import Path
from typing import Any

import jax

from idgenrec_jax import run_files
from idgenrec_jax.errors import InputError
from idgenrec_jax.training.steps import TrainState

_ADDED = {"saves": 0, "validation_due": False}
"""Fields that the first versions did not save, and what they stand for there."""


@dataclasses.dataclass
class RunState:
    """Everything that changes during a run; `to_meta` is the part that is not arrays."""

    id_generator: TrainState
    recommender: TrainState
    # The cursor, which names the next step to take: phase, epoch of the phase, step of the epoch, all from 0.
    phase: int = 0
    epoch: int = 0
    step: int = 0
    # Steps of the whole run so far, which is the step that records and users know.
    global_step: int = 0
    # Checkpoints so far; the next one's number is one more.
    saves: int = 0
    validation_due: bool = False
    # Sum of the epoch's losses; on the device within an epoch.
    loss_sum: float | jax.Array = 0.0
    # The round whose IDs are in use; -1: none yet.
    id_round: int = -1
    best: dict[str, Any] | None = None
    # Recommender validations since the best one.
    misses: int = 0
    # Lines of metrics.jsonl, and seconds of training.
    records: int = 0
    seconds: float = 0.0

    def best_validation(self) -> dict[str, Any]:
        """Return the description of the best validation; RuntimeError before the first."""
        if self.best is None:
            raise RuntimeError("there was no validation yet")
        return self.best

    def to_meta(self) -> dict[str, Any]:
        """Return the fields that are plain JSON."""
        return {name: getattr(self, name) for name in _meta_fields()} | {
            "loss_sum": float(jax.device_get(self.loss_sum))
        }

    def with_meta(self, meta: dict[str, Any], arrays: dict[str, TrainState], *, source: Path) -> "RunState":
        """Return the state that a checkpoint at `source` holds: what `to_meta` and `arrays` returned.

        Raises:
            InputError: the fields are not those of this version.
        """
        expected = _meta_fields()
        meta = _ADDED | meta
        for name in [*expected, *meta]:
            if name not in meta or name not in expected or not _fits(meta[name], expected[name]):
                found = repr(meta[name]) if name in meta else "nothing"
                wanted = expected.get(name, "no such field")
                raise InputError(
                    f"{source}: {name}: found {found}, expected {getattr(wanted, '__name__', wanted)}; another version "
                    "saved it: go on with that version, or train again in another --workdir"
                )
        saved = run_files.CHECKPOINT_NAMES
        return RunState(arrays[saved["id_generator"]], arrays[saved["recommender"]], **meta)

    def arrays(self) -> dict[str, TrainState]:
        """Return the fields that are arrays, under the names that checkpoints have for them."""
        return {saved: getattr(self, name) for name, saved in run_files.CHECKPOINT_NAMES.items()}

    def params(self) -> dict[str, Any]:
        """Return the parameters of both models that are kept, under the names that checkpoints have for them."""
        return {name: state.result for name, state in self.arrays().items()}


def _meta_fields() -> dict[str, Any]:
    """Return the type of every field that is plain JSON."""
    fields = {field.name: field.type for field in dataclasses.fields(RunState)}
    kept = {name: kind for name, kind in fields.items() if name not in run_files.CHECKPOINT_NAMES}
    return kept | {"loss_sum": float}


def _fits(value: Any, kind: Any) -> bool:
    """Tell whether a JSON value is of a field's type."""
    if isinstance(kind, types.UnionType):
        return any(_fits(value, one) for one in typing.get_args(kind))
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, typing.get_origin(kind) or kind)
