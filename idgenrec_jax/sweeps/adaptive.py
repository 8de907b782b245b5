"""Adaptive search: Optuna chooses each trial's overrides from the results so far, and gives up hopeless ones.

A trial's number is Optuna's; its overrides are also kept in its folder. Several machines work on one search when they
share both the folder and the storage: what a dead driver left running in the study is whatever nobody holds
(`Trial.hold`), and the next driver goes on with it from its checkpoint, under the same number.
"""

import contextlib
import dataclasses
import json
import os
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from idgenrec_jax import run_files
from idgenrec_jax.errors import InputError
from idgenrec_jax.files import expand_home, explain_lock_error, read_json, write_json
from idgenrec_jax.locks import lock_file
from idgenrec_jax.run_files import SELECTION_METRIC
from idgenrec_jax.sweeps.definition import Choice, LogUniform, Overrides, Space
from idgenrec_jax.sweeps.trials import (
    FAILED,
    FINISHED,
    OVERRIDES_FILE,
    PRUNED,
    PRUNED_FILE,
    SWEEP_FILE,
    Trial,
    described_sweep,
    make_trial,
    shared_flags,
)

JOURNAL = "journal:"


def claim_search(
    output: Path, *, name: str, space: Space, config: Mapping[str, Any], preset: str | None, settings: dict[str, Any]
) -> None:
    """Make `output` the folder of this search, or check that it already is.

    `config` holds the fields that the user set for all trials, `settings` what else must not change between runs.

    Raises:
        InputError: it is the folder of another search, or cannot be written to.
    """
    described = {
        "sweep": name,
        "flags": shared_flags(config, preset),
        "space": {field: {"kind": type(one).__name__, **dataclasses.asdict(one)} for field, one in space.items()},
        "settings": settings,
    }
    path = output / SWEEP_FILE
    with _exclusive(output):
        if not path.exists():
            # The name tells searches apart in a storage that many of them share.
            write_json(path, described | {"study": f"{output.resolve().name}-{uuid.uuid4().hex[:8]}"})
    found = described_sweep(output)
    for key in ("flags", "space", "settings"):
        expected = json.loads(json.dumps(described[key]))
        if found.get(key) != expected:
            raise InputError(
                f"{path}: made with {key} {json.dumps(found.get(key))}, now {json.dumps(expected)}; name another "
                "--output, or delete this one"
            )


def public_storage(storage: str) -> str:
    """Return a storage's address without its password, as sweep.json keeps it.

    Raises:
        InputError: Optuna is missing, or this is no address of a storage.
    """
    _optuna()
    import sqlalchemy

    if storage.startswith(JOURNAL):
        return storage
    try:
        return sqlalchemy.make_url(storage).render_as_string(hide_password=True)
    except sqlalchemy.exc.ArgumentError as error:
        raise InputError(
            f"--storage={storage}: expected an address as sqlite:///FILE, postgresql://USER:PASSWORD@HOST/DATABASE or "
            f"{JOURNAL}FILE"
        ) from error


class StudyTrials:
    """The trials of an Optuna study, as a queue for `run_locally`, until there are `count` of them."""

    def __init__(self, output: Path, space: Space, *, count: int, storage: str, pruner: str, seed: int):
        """Open the study of the search in `output`, or make it.

        Raises:
            InputError: Optuna is missing, or the storage cannot be used.
        """
        self._optuna = _optuna()
        self._output, self._space, self._count, self._seed = output, space, count, seed
        described = described_sweep(output)
        self._flags = described["flags"]
        pruners = {"median": self._optuna.pruners.MedianPruner, "none": self._optuna.pruners.NopPruner}
        with _exclusive(output), self._storage_errors(storage):
            self._study = self._optuna.create_study(
                study_name=described["study"],
                storage=self._open_storage(storage),
                direction="maximize",
                pruner=pruners[pruner](),
                load_if_exists=True,
            )
        self._running: dict[int, Any] = {}
        self._reported: dict[int, int] = {}

    def take(self) -> tuple[Trial, int] | None:
        """Return a trial that a dead driver left, or else a new one; None where none can begin at present."""
        with _exclusive(self._output):
            for frozen in self._in_state("RUNNING"):
                if frozen.number in self._running:
                    continue
                # Optuna has no public way from a trial that was read to one that can be reported to.
                chosen = self._optuna.trial.Trial(self._study, frozen._trial_id)
                if taken := self._hold(chosen, reported=len(frozen.intermediate_values)):
                    logging.info("trial %d was left by a driver that is gone", frozen.number)
                    return taken
            if self._begun() >= self._count:
                return None
            return self._hold(self._study.ask(), reported=0)

    def is_empty(self) -> bool:
        """See `TrialQueue`."""
        others = [frozen for frozen in self._in_state("RUNNING") if frozen.number not in self._running]
        return not others and self._begun() >= self._count

    def should_prune(self, trial: Trial) -> bool:
        """Report the validations of a running trial; the first one at which it is hopeless ends it."""
        if not self._report(trial, prune=True):
            return False
        logging.info("trial %d is pruned after %d validations", trial.index, self._reported[trial.index])
        write_json(trial.folder / PRUNED_FILE, {f"validation {SELECTION_METRIC}": _validations(trial.workdir)})
        return True

    def ended(self, trial: Trial) -> None:
        """Tell the study; a trial that was stopped stays running there, for the next driver to go on with."""
        self._report(trial, prune=False)
        del self._running[trial.index], self._reported[trial.index]
        states = self._optuna.trial.TrialState
        status = trial.status
        if status == FINISHED:
            self._study.tell(trial.index, trial.results()["validation"][SELECTION_METRIC])
        elif status in (PRUNED, FAILED):
            self._study.tell(trial.index, state={PRUNED: states.PRUNED, FAILED: states.FAIL}[status])

    def _hold(self, chosen: Any, *, reported: int) -> tuple[Trial, int] | None:
        """Make the folder of a trial of the study and hold it; None where another holds it, or it has ended already.

        `chosen` is the optuna.trial.Trial; the study knows its first `reported` validations.
        """
        # A seed for all would have a search that goes on draw its first trials again.
        seed = int(np.random.SeedSequence([self._seed, chosen.number]).generate_state(1)[0])
        self._study.sampler = self._optuna.samplers.TPESampler(seed=seed, constant_liar=True)
        overrides: Overrides = {field: _suggest(chosen, field, one) for field, one in self._space.items()}
        trial = make_trial(self._output, chosen.number, overrides, self._flags)
        descriptor = trial.hold()
        if descriptor is None:
            return None
        self._write_overrides(trial)
        self._running[trial.index], self._reported[trial.index] = chosen, reported
        if trial.status in (FINISHED, PRUNED, FAILED):
            self.ended(trial)
            os.close(descriptor)
            return None
        return trial, descriptor

    def _write_overrides(self, trial: Trial) -> None:
        path = trial.folder / OVERRIDES_FILE
        if path.exists() and read_json(path, remedy="name another --output") != trial.overrides:
            raise InputError(
                f"{path}: not what the study has for trial {trial.index}; expected the --storage that this folder was "
                "made with, and its study still in it; give that, or name another --output"
            )
        write_json(path, trial.overrides)

    def _report(self, trial: Trial, *, prune: bool) -> bool:
        """Report the validations that the study does not know; return whether it gave the trial up at one of them."""
        chosen = self._running[trial.index]
        values = _validations(trial.workdir)
        for step in range(self._reported[trial.index], len(values)):
            # Trials are compared at the same number of validations: their steps may be of different sizes.
            chosen.report(values[step], step)
            self._reported[trial.index] = step + 1
            if prune and chosen.should_prune():
                return True
        return False

    def _in_state(self, *names: str) -> list[Any]:
        states = tuple(self._optuna.trial.TrialState[name] for name in names)
        return self._study.get_trials(deepcopy=False, states=states)

    def _begun(self) -> int:
        """Trials that count: those that wait in the study's queue are begun when asked for."""
        return len(self._in_state("RUNNING", "COMPLETE", "PRUNED", "FAIL"))

    def _open_storage(self, storage: str) -> Any:
        if not storage.startswith(JOURNAL):
            return storage
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        return JournalStorage(JournalFileBackend(expand_home(storage.removeprefix(JOURNAL))))

    @contextlib.contextmanager
    def _storage_errors(self, storage: str) -> Iterator[None]:
        import sqlalchemy

        try:
            yield
        except (ImportError, OSError, sqlalchemy.exc.SQLAlchemyError, self._optuna.exceptions.OptunaError) as error:
            reason = str(error).split("\n")[0]
            raise InputError(
                f"--storage={public_storage(storage)}: cannot be used ({reason}); expected a database that can be "
                "written to, and its Python driver installed"
            ) from error


def _suggest(chosen: Any, field: str, one: Any) -> Any:
    """The value of a field in a trial of the study: chosen now, or before."""
    if isinstance(one, Choice):
        return chosen.suggest_categorical(field, one.values)
    whole = isinstance(one.low, int) and isinstance(one.high, int)
    suggest = chosen.suggest_int if whole else chosen.suggest_float
    return suggest(field, one.low, one.high, log=isinstance(one, LogUniform))


def _validations(workdir: Path) -> list[float]:
    """The validation NDCG@10 of a run so far, from the whole lines of its metrics.jsonl."""
    path = workdir / run_files.METRICS
    try:
        text = path.read_text(encoding="utf-8")
        records = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
        return [float(record[SELECTION_METRIC]) for record in records if record["split"] == "validation"]
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path}: not the records of a run ({error!r:.60}); delete {workdir.parent}") from error


@contextlib.contextmanager
def _exclusive(output: Path) -> Iterator[None]:
    """One driver of a folder at a time: what it asks the study for is held before another one looks."""
    path = output / "study.lock"
    try:
        output.mkdir(parents=True, exist_ok=True)
        descriptor = lock_file(path, wait=True)
        assert descriptor is not None
    except OSError as error:
        raise explain_lock_error(error, path) from error
    try:
        yield
    finally:
        os.close(descriptor)


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise InputError("--sampler: needs Optuna; pip install 'optuna>=5'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
