"""The folder of a sweep: what its trials are, and how far each of them is."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from idgenrec_jax.errors import InputError
from idgenrec_jax.files import read_json, write_json
from idgenrec_jax.sweeps.definition import Overrides, Sweep

SWEEP_FILE, ERROR_FILE, LOG_FILE = "sweep.json", "error.json", "log.txt"
NEW, BEGUN, FINISHED, FAILED = "new", "begun", "finished", "failed"
_LAST_LINES = 20


@dataclasses.dataclass(frozen=True)
class Trial:
    """One run of a sweep, in a folder of its own."""

    index: int
    overrides: Overrides
    folder: Path

    @property
    def workdir(self) -> Path:
        """The --workdir of its run."""
        return self.folder / "run"

    @property
    def status(self) -> str:
        """NEW, BEGUN (running, or cut off), FINISHED or FAILED."""
        if (self.workdir / "results.json").exists():
            return FINISHED
        if (self.folder / ERROR_FILE).exists():
            return FAILED
        return BEGUN if (self.workdir / "config.json").exists() else NEW

    def command(self, base_flags: Sequence[str]) -> list[str]:
        """Return the command of its run; `base_flags` are those that all trials share."""
        own = [f"--config.{name}={value}" for name, value in self.overrides.items()]
        return [sys.executable, "-m", "launch.train", f"--workdir={self.workdir}", *base_flags, *own]

    def record_failure(self, exit_code: int) -> None:
        """Write down how its run ended: the exit code and the last lines that it wrote."""
        log = self.folder / LOG_FILE
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
        write_json(self.folder / ERROR_FILE, {"exit_code": exit_code, "last_lines": lines[-_LAST_LINES:]})

    def results(self) -> dict[str, Any]:
        """Return the results.json of a finished trial."""
        return read_json(self.workdir / "results.json", remedy=f"delete {self.folder} to run the trial again")


def claim_sweep(output: str | Path, name: str, sweep: Sweep, base_flags: Sequence[str]) -> list[Trial]:
    """Make `output` the folder of this sweep, or check that it already is, and return its trials.

    Raises:
        InputError: it is the folder of another sweep, or cannot be written to.
    """
    output = Path(output)
    described = {"sweep": name, "flags": list(base_flags), "trials": sweep}
    path = output / SWEEP_FILE
    if path.exists():
        found = read_json(path, remedy="name another --output")
        different = next((key for key in described if found.get(key) != described[key]), None)
        if different and different != "sweep":
            raise InputError(f"{path}: made with other {different}; name another --output, or delete this one")
    else:
        write_json(path, described)
    return trials_of(output)


def trials_of(output: str | Path) -> list[Trial]:
    """Return the trials of a sweep's folder.

    Raises:
        InputError: the folder holds no sweep.
    """
    found = read_json(Path(output) / SWEEP_FILE, remedy="expected the --output of a run of launch.sweep")
    return [
        Trial(index, overrides, Path(output) / f"trial_{index:05d}") for index, overrides in enumerate(found["trials"])
    ]
