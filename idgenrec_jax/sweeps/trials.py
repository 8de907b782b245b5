"""The folder of a sweep: what its trials are, how far each of them is, and the lock that keeps each to one process.

    sweep.json                   name, shared flags, and the trials' overrides (or the space of an adaptive search)
    trial_00000/run/             the --workdir of launch.train
    trial_00000/log.txt          what its processes printed
    trial_00000/error.json       how its last process failed, if it did
    trial_00000/overrides.json   adaptive search only: the overrides, which sweep.json cannot know beforehand
    trial_00000/pruned.json      adaptive search only: the validations after which it was given up
    trial_00000/lock             held (flock) as long as a process of the trial lives

Paths in sweep.json are absolute, so that any process that sees the same files can run any trial from any folder.
"""

import dataclasses
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from idgenrec_jax import run_files
from idgenrec_jax.config import path_fields
from idgenrec_jax.data.tokenizer_training import is_to_train
from idgenrec_jax.errors import InputError
from idgenrec_jax.files import expand_home, explain_lock_error, read_json, write_json
from idgenrec_jax.locks import holder, lock_file
from idgenrec_jax.sweeps.definition import Overrides, Sweep

SWEEP_FILE, ERROR_FILE, LOG_FILE, LOCK_FILE = "sweep.json", "error.json", "log.txt", "lock"
OVERRIDES_FILE, PRUNED_FILE = "overrides.json", "pruned.json"
NEW, BEGUN, FINISHED, FAILED, PRUNED = "new", "begun", "finished", "failed", "pruned"

TRAIN_PROGRAM = "idgenrec_jax.launch.train"
_LAST_LINES = 20
_ANOTHER_OUTPUT = "name another --output, or delete this one"


@dataclasses.dataclass(frozen=True)
class Trial:
    """One run of a sweep, in a folder of its own; `flags` are the flags of launch.train that all trials share."""

    index: int
    overrides: Overrides
    flags: tuple[str, ...]
    folder: Path

    @property
    def workdir(self) -> Path:
        """The --workdir of its run."""
        return self.folder / "run"

    @property
    def status(self) -> str:
        """NEW, BEGUN (running, or cut off), FINISHED, PRUNED or FAILED."""
        if (self.workdir / run_files.RESULTS).exists():
            return FINISHED
        if (self.folder / PRUNED_FILE).exists():
            return PRUNED
        if (self.folder / ERROR_FILE).exists():
            return FAILED
        return BEGUN if (self.workdir / run_files.CONFIG).exists() else NEW

    def command(self) -> list[str]:
        """Return the command of its run."""
        own = [f"--config.{name}={value}" for name, value in self.overrides.items()]
        return [sys.executable, "-m", TRAIN_PROGRAM, f"--workdir={self.workdir}", *self.flags, *own]

    def hold(self) -> int | None:
        """Return a file descriptor that keeps all others from running the trial, or None where another one has it.

        The trial is held until the descriptor is closed in this process and in all that inherited it: a trial whose
        driver was killed stays held by its own process.

        Raises:
            InputError: the folder cannot be written to, or its file system has no locks.
        """
        path = self.folder / LOCK_FILE
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            return lock_file(path, wait=False)
        except OSError as error:
            raise explain_lock_error(error, path) from error

    def holder(self) -> str:
        """Return who last held the trial."""
        return holder(self.folder / LOCK_FILE)

    def record_failure(self, exit_code: int, *, log_start: int) -> str:
        """Write error.json and return the error in one line; the process wrote its log from byte `log_start` on."""
        with open(self.folder / LOG_FILE, "rb") as log:
            log.seek(log_start)
            lines = log.read().decode("utf-8", errors="replace").splitlines()
        error = _error_line(exit_code, lines)
        write_json(
            self.folder / ERROR_FILE, {"error": error, "exit_code": exit_code, "last_lines": lines[-_LAST_LINES:]}
        )
        return error

    def failure(self) -> str:
        """Return the error of a failed trial in one line."""
        return read_json(self.folder / ERROR_FILE, remedy="run the sweep again", fields={"error": str})["error"]

    def results(self) -> dict[str, Any]:
        """Return the results.json of a finished trial."""
        metrics = {f"{split}.{run_files.SELECTION_METRIC}": (int, float) for split in ("validation", "test")}
        return read_json(
            self.workdir / run_files.RESULTS,
            remedy=f"delete {self.folder} to run the trial again",
            fields={"seconds": (int, float)} | metrics,
        )


def claim_sweep(output: Path, *, name: str, trials: Sweep, config: Mapping[str, Any], preset: str | None) -> None:
    """Make `output` the folder of this sweep, or check that it already is one of its first trials.

    `config` holds the fields that the user set for all trials.

    Raises:
        InputError: it is the folder of another sweep, or cannot be written to.
    """
    described = {"sweep": name, "flags": shared_flags(config, preset), "trials": list(map(with_absolute_paths, trials))}
    path = output / SWEEP_FILE
    if path.exists():
        found = described_sweep(output)
        if found["flags"] != described["flags"]:
            raise InputError(f"{path}: made with the flags {' '.join(found['flags'])}; {_ANOTHER_OUTPUT}")
        before = found.get("trials", [])
        if not before or described["trials"][: len(before)] != before:
            raise InputError(
                f"{path}: has other trials; expected the same, or the same and more after them; {_ANOTHER_OUTPUT}"
            )
        if len(before) == len(trials):
            return
    write_json(path, described)


def described_sweep(output: Path) -> dict[str, Any]:
    """Return the contents of sweep.json.

    Raises:
        InputError: the folder holds no sweep, or its sweep.json was edited.
    """
    path = output / SWEEP_FILE
    if not path.exists():
        return read_json(path, remedy="expected the --output of a run of launch.sweep")
    remedy = f"restore the file, or {_ANOTHER_OUTPUT}"
    found = read_json(path, remedy=remedy, fields={"flags": list})
    kind = "space" if "space" in found else "trials"
    read_json(path, remedy=remedy, fields={"space": dict, "study": str} if kind == "space" else {"trials": list})
    whole = all(isinstance(flag, str) for flag in found["flags"])
    if not whole or not all(isinstance(overrides, dict) for overrides in found.get("trials", [])):
        raise InputError(f"{path}: expected flags that are texts and trials that are objects; {remedy}")
    return found


def trials_of(output: Path) -> list[Trial]:
    """Return the trials of a sweep's folder, of an adaptive search those begun so far.

    Raises:
        InputError: the folder holds no sweep.
    """
    found = described_sweep(output)
    if "trials" in found:
        overrides = dict(enumerate(found["trials"]))
    else:
        overrides = {
            int(path.parent.name.removeprefix("trial_")): read_json(path, remedy=f"delete {path.parent}", fields={})
            for path in sorted(output.glob(f"trial_*/{OVERRIDES_FILE}"))
            if path.parent.name.removeprefix("trial_").isdecimal()
        }
    return [make_trial(output, index, own, found["flags"]) for index, own in overrides.items()]


def make_trial(output: Path, index: int, overrides: Overrides, flags: Sequence[str]) -> Trial:
    """Return trial `index` of the sweep in `output`."""
    return Trial(index, overrides, tuple(flags), output.resolve() / f"trial_{index:05d}")


def shared_flags(config: Mapping[str, Any], preset: str | None) -> list[str]:
    """Return the flags of launch.train for fields that all trials share."""
    chosen = [f"--preset={preset}"] if preset else []
    return chosen + [f"--config.{name}={value}" for name, value in with_absolute_paths(config).items()]


def with_absolute_paths(overrides: Mapping[str, Any]) -> Overrides:
    """Return a copy in which paths of existing files and folders are absolute; other names stay as they are."""
    result = dict(overrides)
    for name in path_fields():
        value = result.get(name)
        # 'sample' is the embedded catalogue and 'train' a tokenizer to be made, whatever lies in the working folder.
        if not isinstance(value, str) or value in ("", "sample") or (name == "data.tokenizer" and is_to_train(value)):
            continue
        if Path(expand_home(value)).exists():
            result[name] = str(Path(expand_home(value)).resolve())
    return result


def _error_line(exit_code: int, lines: Sequence[str]) -> str:
    if exit_code < 0:
        hint = ", perhaps because memory ran out" if -exit_code == signal.SIGKILL else ""
        return f"killed by {signal.Signals(-exit_code).name}{hint}"
    told = [line.strip() for line in lines if line.strip()]
    errors = [line for line in told if line.startswith("error: ")]
    return (errors or told or [f"exit code {exit_code}"])[-1].removeprefix("error: ")
