"""Trials as processes on this machine, a few at a time, each with cores and accelerators of its own."""

import contextlib
import dataclasses
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence

from absl import logging

from idgenrec_jax.sweeps.trials import ERROR_FILE, FINISHED, LOG_FILE, Trial

_POLL_SECONDS = 0.2


@dataclasses.dataclass(frozen=True)
class Slot:
    """A share of the machine: processor cores, and accelerators by number (empty: none are told apart)."""

    cores: tuple[int, ...]
    devices: tuple[int, ...]

    def environment(self) -> dict[str, str]:
        """Return the variables of a process in this slot."""
        if not self.devices:
            return dict(os.environ)
        visible = ",".join(map(str, self.devices))
        return os.environ | {"CUDA_VISIBLE_DEVICES": visible, "ROCR_VISIBLE_DEVICES": visible}


def slots(count: int, *, cores: Sequence[int], devices: Sequence[int] = ()) -> list[Slot]:
    """Return `count` slots that share cores and devices out as evenly as possible.

    Where there are fewer than slots, several slots have the same one.
    """

    def share(resources: Sequence[int], index: int) -> tuple[int, ...]:
        return tuple(resources[index::count]) or tuple(resources[index % len(resources) :][:1] if resources else ())

    return [Slot(share(cores, index), share(devices, index)) for index in range(count)]


def run_locally(
    trials: Sequence[Trial], base_flags: Sequence[str], places: Sequence[Slot], *, should_stop: Callable[[], bool]
) -> None:
    """Run every trial that is not finished, one in each slot at a time; a failure is recorded and the rest goes on.

    A trial that was cut off goes on from its checkpoint, one that failed is tried again. When `should_stop` says so,
    the running trials are asked to save and stop, and no other begins.
    """
    waiting = [trial for trial in trials if trial.status != FINISHED]
    total, done = len(waiting), 0
    free = list(places)
    running: dict[subprocess.Popen, tuple[Trial, Slot]] = {}
    stopping = False
    while running or (waiting and not stopping):
        if should_stop() and not stopping:
            stopping = True
            for process in running:
                process.send_signal(signal.SIGTERM)
        while waiting and free and not stopping:
            trial, slot = waiting.pop(0), free.pop(0)
            running[_start(trial, base_flags, slot)] = trial, slot
            logging.info("trial %d begins: %s", trial.index, trial.overrides)
        for process in [process for process in running if process.poll() is not None]:
            trial, slot = running.pop(process)
            free.append(slot)
            if stopping and trial.status != FINISHED:
                continue
            done += 1
            if process.returncode or trial.status != FINISHED:
                trial.record_failure(process.returncode)
                logging.warning("trial %d failed, see %s (%d of %d)", trial.index, trial.folder, done, total)
            else:
                logging.info("trial %d finished (%d of %d)", trial.index, done, total)
        time.sleep(_POLL_SECONDS)


def _start(trial: Trial, base_flags: Sequence[str], slot: Slot) -> subprocess.Popen:
    trial.folder.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        (trial.folder / ERROR_FILE).unlink()
    with open(trial.folder / LOG_FILE, "a", encoding="utf-8") as log:
        process = subprocess.Popen(
            trial.command(base_flags),
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=slot.environment(),
            start_new_session=True,
        )
    if hasattr(os, "sched_setaffinity"):
        # Threads that the process starts later, all of JAX's, inherit it.
        os.sched_setaffinity(process.pid, slot.cores)
    return process
