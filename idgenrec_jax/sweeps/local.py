"""Trials as processes on this machine, a few at a time, each with cores and accelerators of its own."""

import contextlib
import dataclasses
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

from absl import logging

from idgenrec_jax.locks import note_holder
from idgenrec_jax.sweeps.trials import BEGUN, ERROR_FILE, FINISHED, LOG_FILE, NEW, PRUNED, PRUNED_FILE, Trial

_POLL_SECONDS = 0.3
# JAX takes three quarters of an accelerator's memory by default, which one process at a time can have.
_SHARED_MEMORY = 0.9


@dataclasses.dataclass(frozen=True)
class Slot:
    """A share of the machine: processor cores, and accelerators by number (empty: none are told apart).

    `sharers` slots, this one included, have the same accelerators.
    """

    cores: tuple[int, ...]
    devices: tuple[str, ...]
    sharers: int = 1

    def environment(self) -> dict[str, str]:
        """Return the variables of a process in this slot."""
        variables = dict(os.environ)
        if self.devices:
            visible = ",".join(self.devices)
            variables |= {"CUDA_VISIBLE_DEVICES": visible, "ROCR_VISIBLE_DEVICES": visible}
        if self.sharers > 1:
            variables.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", f"{_SHARED_MEMORY / self.sharers:.3f}")
        return variables


def available_cores() -> list[int]:
    """Return the numbers of the cores this process may use; empty where the system does not tell."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def make_slots(count: int, *, cores: Sequence[int], devices: Sequence[str] = ()) -> list[Slot]:
    """Return `count` slots that share cores and devices out as evenly as possible.

    Where there are fewer than slots, several slots have the same one.
    """

    def share(resources: Sequence, index: int) -> tuple:
        if len(resources) >= count:
            return tuple(resources[index::count])
        return (resources[index % len(resources)],) if resources else ()

    shares = [share(devices, index) for index in range(count)]
    return [Slot(share(cores, index), shares[index], shares.count(shares[index])) for index in range(count)]


@runtime_checkable
class TrialQueue(Protocol):
    """Where trials come from, and who is told how they end."""

    def take(self) -> tuple[Trial, int] | None:
        """Return the next trial and the descriptor that holds it; None where none can begin at present."""

    def is_empty(self) -> bool:
        """Tell whether no trial is left to begin, and none that another process runs is left to wait for."""

    def should_prune(self, trial: Trial) -> bool:
        """Tell whether a running trial is to be given up; if so, its status is PRUNED from here on."""

    def ended(self, trial: Trial) -> None:
        """Take note that the process of a trial has ended; its status says how."""


class ListedTrials:
    """The trials of a list, in its order; finished ones are skipped, those that another process runs wait for it."""

    def __init__(self, trials: Sequence[Trial]):
        """Begin with all `trials` that are not finished."""
        self._waiting = [trial for trial in trials if trial.status != FINISHED]
        self._held_elsewhere: set[int] = set()

    def take(self) -> tuple[Trial, int] | None:
        """See `TrialQueue`."""
        for trial in list(self._waiting):
            descriptor = trial.hold()
            if descriptor is None:
                if trial.index not in self._held_elsewhere:
                    logging.info("trial %d is being run by %s; waiting for it", trial.index, trial.holder())
                    self._held_elsewhere.add(trial.index)
                continue
            self._waiting.remove(trial)
            if trial.status != FINISHED:
                return trial, descriptor
            os.close(descriptor)
        return None

    def is_empty(self) -> bool:
        """See `TrialQueue`."""
        return not self._waiting

    def should_prune(self, trial: Trial) -> bool:
        """A listed trial is never given up."""
        return False

    def ended(self, trial: Trial) -> None:
        """Nobody needs to know."""


@dataclasses.dataclass(frozen=True)
class _Running:
    trial: Trial
    slot: Slot
    descriptor: int
    log_start: int
    process: subprocess.Popen


def run_locally(queue: TrialQueue, slots: Sequence[Slot], *, should_stop: Callable[[], bool]) -> None:
    """Run the trials of a queue, one in each slot at a time; a failure is recorded and the rest goes on.

    A trial that was cut off goes on from its checkpoint, one that failed is tried again. When `should_stop` says so,
    the running trials are asked to save and stop, and no other begins.
    """
    free = list(slots)
    running: list[_Running] = []
    stopping = False
    while running or not (stopping or queue.is_empty()):
        if should_stop() and not stopping:
            stopping = True
            for one in running:
                one.process.send_signal(signal.SIGTERM)
        while free and not stopping and (taken := queue.take()):
            running.append(_start(*taken, free.pop(0)))
        for one in list(running):
            if one.process.poll() is not None:
                running.remove(one)
                free.append(one.slot)
                _end(one, queue, stopping=stopping)
            elif one.trial.status != PRUNED and queue.should_prune(one.trial):
                one.process.send_signal(signal.SIGTERM)
        time.sleep(_POLL_SECONDS)


def _start(trial: Trial, descriptor: int, slot: Slot) -> _Running:
    logging.info("trial %d %s: %s", trial.index, "goes on" if trial.workdir.exists() else "begins", trial.overrides)
    for name in (ERROR_FILE, PRUNED_FILE):
        (trial.folder / name).unlink(missing_ok=True)
    with open(trial.folder / LOG_FILE, "ab") as log, _pinned_to(slot.cores):
        log_start = log.tell()
        process = subprocess.Popen(
            trial.command(),
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=slot.environment(),
            pass_fds=[descriptor],
            # Ctrl-C in a terminal reaches the driver alone, which passes it on.
            start_new_session=True,
        )
    note_holder(descriptor, process.pid)
    return _Running(trial, slot, descriptor, log_start, process)


@contextlib.contextmanager
def _pinned_to(cores: Sequence[int]):
    """Pin this thread for a moment: a process started in it is pinned from its first instruction on."""
    if not cores:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _end(one: _Running, queue: TrialQueue, *, stopping: bool) -> None:
    trial, exit_code = one.trial, one.process.returncode
    if exit_code and not stopping and trial.status not in (FINISHED, PRUNED):
        error = trial.record_failure(exit_code, log_start=one.log_start)
        logging.warning("trial %d failed: %s (%s)", trial.index, error, trial.folder / LOG_FILE)
    else:
        status = "stopped; it goes on when the sweep is run again" if trial.status in (NEW, BEGUN) else trial.status
        logging.info("trial %d %s", trial.index, status)
    queue.ended(trial)
    os.close(one.descriptor)
