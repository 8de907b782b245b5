"""Checkpoints of a run, by Orbax, with the sizes of their files so that a truncated one is noticed.

A folder of checkpoints holds one sub-folder a step. Orbax writes a step under a temporary name and renames it; after
that `files.json` lists the size of every file. A step without it, or whose files differ from it, is not used.

Every process makes the same calls and writes what its own devices hold; what else there is to do in the folder, and to
find out about it, process 0 does for all. A checkpoint is read by any number of processes and devices.
"""

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging

from idgenrec_jax.errors import InputError
from idgenrec_jax.files import is_disk_full, write_json
from idgenrec_jax.processes import from_main, is_main

_SIZES = "files.json"

# What a checkpoint takes on the disk beside its arrays: Orbax's indices and temporary files.
_ROOM_FACTOR, _ROOM_BYTES = 1.05, 2**19


class Checkpoints:
    """The checkpoints of one kind ("latest" or "best") of a run."""

    def __init__(self, folder: str | Path, *, keep: int):
        """Keep the newest `keep` steps under `folder`."""
        self._folder = Path(folder).absolute()
        self._keep = keep

    def steps(self) -> list[int]:
        """Return the steps whose checkpoints are whole, oldest first; broken ones are named in a warning."""
        return from_main(self._whole_steps)

    def _whole_steps(self) -> list[int]:
        if not self._folder.is_dir():
            return []
        whole = []
        for step in sorted(int(path.name) for path in self._folder.iterdir() if path.name.isdigit()):
            problem = self._problem(step)
            if problem:
                logging.warning("%s: %s; falling back to the checkpoint before it", self._path(step), problem)
            else:
                whole.append(step)
        return whole

    def require(self, step: int) -> int:
        """Return `step` where its checkpoint is whole.

        Raises:
            InputError: it is not.
        """
        problem = from_main(lambda: self._problem(step))
        if problem:
            raise InputError(f"{self._path(step)}: {problem}; restore it, or delete the workdir and train again")
        return step

    def save(self, step: int, state: Any, meta: dict[str, Any]) -> None:
        """Write the arrays of `state` and the JSON object `meta` as `step`, then delete what is too old.

        A checkpoint of the same step is replaced.

        Raises:
            InputError: no space is left on the disk.
        """
        path = self._path(step)
        logger = logging.get_absl_logger()
        level = logger.level
        try:
            from_main(lambda: self._prepare(path, state))
            # Orbax logs the traceback of a failed write before it raises; the user gets one line from below.
            logger.setLevel(logging.converter.STANDARD_CRITICAL)
            with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
                checkpointer.save(
                    path, ocp.args.Composite(state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta))
                )
            from_main(lambda: write_json(path / _SIZES, self._sizes(step)))
        except Exception as error:
            if is_disk_full(error):
                if is_main():
                    self._remove(path)
                raise InputError(
                    f"{path}: no space left on the disk for a checkpoint; free some and run the same command again, "
                    "it goes on from the checkpoint before"
                ) from error
            raise
        finally:
            logger.setLevel(level)
        from_main(self._prune)

    def meta(self, step: int) -> dict[str, Any]:
        """Return the JSON object that was saved with `step`."""
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
            return checkpointer.restore(self._path(step), ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]

    def restore(self, step: int, like: Any) -> Any:
        """Return the arrays saved as `step`, with the structure, dtypes and shardings of `like`.

        `like` holds arrays or `jax.ShapeDtypeStruct`s with shardings.
        """
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
            restored = checkpointer.restore(
                self._path(step), ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
            )
        return restored["state"]

    def _prepare(self, path: Path, state: Any) -> None:
        self._remove(path)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._check_room(state)

    def _prune(self) -> None:
        numbers = sorted(int(entry.name) for entry in self._folder.iterdir() if entry.name.isdigit())
        kept = [number for number in numbers if self._problem(number) is None][-self._keep :]
        for number in set(numbers) - set(kept):
            shutil.rmtree(self._path(number))

    def _check_room(self, state: Any) -> None:
        """Fail before Orbax's threads do: each of them would print a traceback of its own."""
        needed = int(_ROOM_FACTOR * sum(leaf.nbytes for leaf in jax.tree.leaves(state))) + _ROOM_BYTES
        free = shutil.disk_usage(self._folder).free
        if free < needed:
            raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}: {free} bytes free, {needed} needed")

    def _remove(self, path: Path) -> None:
        """Delete a step and what an unfinished save of it left."""
        for entry in [path, *self._folder.glob(f"{path.name}.orbax-checkpoint-tmp*")]:
            shutil.rmtree(entry, ignore_errors=True)

    def _path(self, step: int) -> Path:
        return self._folder / str(step)

    def _sizes(self, step: int) -> dict[str, int]:
        path = self._path(step)
        files = (file for file in sorted(path.rglob("*")) if file.is_file() and file.name != _SIZES)
        return {str(file.relative_to(path)): file.stat().st_size for file in files}

    def _problem(self, step: int) -> str | None:
        try:
            expected = json.loads((self._path(step) / _SIZES).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return f"{_SIZES} is missing or unreadable, so the checkpoint is not whole"
        found = self._sizes(step)
        for name, size in expected.items():
            if found.get(name) != size:
                return f"{name} has {found.get(name, 'no')} bytes, expected {size}"
        return None
