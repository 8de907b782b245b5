"""Records of single steps: loss, learning rate, gradient norm and speed, read without holding the device up."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from idgenrec_jax.data.id_batches import IdBatch
from idgenrec_jax.data.packing import SupervisedBatch
from idgenrec_jax.errors import InputError
from idgenrec_jax.training.steps import Metrics


class _Waiting(NamedTuple):
    """What is to be recorded of a step; its metrics are still on the device."""

    place: dict[str, Any]
    title: str
    learning_rate: float
    metrics: Metrics
    examples: int


class StepRecords:
    """Records every so many steps of a run.

    To read a step's metrics is to wait for the step. So they are read when the next one has been dispatched: the device
    then has work to go on with.
    """

    def __init__(self, every: int, write: Callable[[dict[str, Any]], None]):
        """Hand a record to `write` every `every` steps of the run; 0: never."""
        self._every, self._write = every, write
        self._waiting: _Waiting | None = None
        self.restart_clock()

    def restart_clock(self) -> None:
        """Measure the speed from now on, or from the end of the next dispatch, which may have to compile."""
        self._examples, self._since = 0, time.monotonic()
        self._is_first = True

    def add(
        self, place: dict[str, Any], metrics: Metrics, *, title: str, learning_rate: float, examples: int
    ) -> None:
        """Say that a step of so many examples was dispatched; `place` is what its record begins with.

        `title` is what an error calls the epoch.

        Raises:
            InputError: the loss of a step before it is not finite.
        """
        self.flush()
        records_step = bool(self._every) and place["step"] % self._every == 0
        if self._is_first and not records_step:
            self._since = time.monotonic()
        else:
            self._examples += examples
        self._is_first = False
        if records_step:
            self._waiting = _Waiting(place, title, learning_rate, metrics, self._examples)
            self._examples = 0

    def flush(self) -> None:
        """Write the record that waits, if any.

        Raises:
            InputError: its loss is not finite.
        """
        if self._waiting is None:
            return
        place, title, learning_rate, metrics, examples = self._waiting
        self._waiting = None
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        for name in ("loss", "gradient_norm"):
            check_finite(name, values[name], phase=place["phase"], where=f"{title}, step {place['step']}")
        now = time.monotonic()
        speed = examples / max(now - self._since, 1e-9)
        self._since = now
        self._write(
            {
                **place,
                "loss": values["loss"],
                "learning_rate": learning_rate,
                "gradient_norm": values["gradient_norm"],
                "examples_per_second": round(speed, 2),
            }
        )


def check_finite(name: str, value: float, *, phase: str, where: str) -> None:
    """Check a number that training gave in a phase of this kind.

    Raises:
        InputError: it is infinite or none.
    """
    if not np.isfinite(value):
        # Another rate is another run.
        raise InputError(
            f"{where}: the {name.replace('_', ' ')} is {value}; lower the learning rate "
            f"(--config.training.{phase}_learning_rate) and train in another --workdir"
        )


def count_examples(batch: SupervisedBatch | IdBatch) -> int:
    """Return how many targets share the rows of a batch, not yet on the device."""
    segments = np.asarray(batch.target_segments)
    is_first = np.diff(segments, axis=1, prepend=0) != 0
    if isinstance(batch, SupervisedBatch) and batch.order is not None:
        is_first |= np.diff(np.asarray(batch.order.target_numbers), axis=1, prepend=-1) != 0
    return int((is_first & (segments > 0)).sum())
