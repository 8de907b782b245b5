"""Checkpoints of a run, by Orbax, with the sizes of their files so that a truncated one is noticed.

A folder of checkpoints holds one sub-folder for each, named by a number. It is written under another name, `files.json`
with the size of every file and the order of saving is put beside its arrays, and then it gets its number: a folder with
a number was whole once. One whose files differ from their list is broken and is not used.

Every process makes the same calls and writes what its own devices hold; what else there is to do in the folder, and to
find out about it, process 0 does for all. A checkpoint is read by any number of processes and devices.

Orbax's CheckpointManager is not used. It counts broken checkpoints among those that it keeps, so that it would delete
the last whole one, and it refuses a number below its newest, which is what a run has that goes on from an older state.
"""

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging
from absl.logging import converter

from idgenrec_jax.errors import InputError
from idgenrec_jax.files import explain_write_error, is_disk_full, write_json
from idgenrec_jax.processes import from_main, is_main

_LIST = "files.json"
_UNFINISHED = ".unfinished"
_REMEDY = (
    "go on with the package versions that config.json of its workdir names, or train again in another --workdir"
)

# What a checkpoint takes on the disk beside its arrays: Orbax's indices and temporary files.
_ROOM_FACTOR, _ROOM_BYTES = 1.05, 2**19


class Checkpoints:
    """The checkpoints of one kind ("latest" or "best") of a run, each known by its number."""

    def __init__(self, folder: str | Path, *, keep: int):
        """Keep the `keep` checkpoints under `folder` that were saved last."""
        self._folder = Path(folder).absolute()
        self._keep = keep

    def path(self, number: int) -> Path:
        """Return the folder of a checkpoint."""
        return self._folder / str(number)

    def numbers(self) -> list[int]:
        """Return the numbers of the whole checkpoints in the order of saving; broken ones are named in a warning."""
        whole, problems = from_main(self._survey)
        for problem in problems if whole and is_main() else ():
            logging.warning("%s; falling back to the checkpoint before it", problem)
        return whole

    def newest(self, *, remedy: str) -> int | None:
        """Return the number of the whole checkpoint that was saved last; None where there is no checkpoint at all.

        Raises:
            InputError: there are checkpoints, and all of them are broken; `remedy` is the way out that it names.
        """
        numbers = self.numbers()
        problems = [] if numbers else from_main(self._survey)[1]
        if problems:
            raise InputError(f"{'; '.join(problems)}; found no whole checkpoint beside; {remedy}")
        return numbers[-1] if numbers else None

    def require(self, number: int) -> int:
        """Return `number` where its checkpoint is whole.

        Raises:
            InputError: it is not.
        """
        _, problem = from_main(lambda: self._inspect(number))
        if problem:
            raise InputError(f"{self.path(number)}: {problem}; restore it, or delete the workdir and train again")
        return number

    def save(self, number: int, state: Any, meta: dict[str, Any]) -> None:
        """Write the arrays of `state` and the JSON object `meta` as `number`, then delete what is too old.

        A checkpoint of the same number is replaced.

        Raises:
            InputError: no space is left on the disk, or the folder cannot be written to.
        """
        path = self.path(number)
        unfinished = path.with_name(path.name + _UNFINISHED)
        logger = logging.get_absl_logger()
        level = logger.level
        try:
            from_main(lambda: self._prepare(path, state))
            # Orbax logs the traceback of a failed write before it raises; the user gets one line from below.
            logger.setLevel(converter.STANDARD_CRITICAL)
            with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
                checkpointer.save(
                    unfinished, ocp.args.Composite(state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta))
                )
            from_main(lambda: self._finish(unfinished, path))
        except Exception as error:
            if is_disk_full(error):
                if is_main():
                    self._clear_unfinished()
                raise InputError(
                    f"{path}: no space left on the disk for a checkpoint; free some and run the same command again, "
                    "it goes on from the checkpoint before"
                ) from error
            if isinstance(error, OSError):
                raise explain_write_error(error, path) from error
            raise
        finally:
            logger.setLevel(level)
        from_main(self._prune)

    def meta(self, number: int, *, required: Collection[str] = ()) -> dict[str, Any]:
        """Return the JSON object that was saved with `number`.

        Raises:
            InputError: another version wrote the checkpoint in another way, or without a `required` name.
        """
        with self._explained(number), ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
            meta = checkpointer.restore(self.path(number), ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]
            missing = sorted(set(required) - dict(meta).keys())
        if missing:
            raise InputError(
                f"{self.path(number)}/meta: found {', '.join(meta)}, expected {', '.join(missing)} as well; {_REMEDY}"
            )
        return meta

    def restore(self, number: int, like: Any) -> Any:
        """Return the arrays saved as `number`, with the structure, dtypes and shardings of `like`.

        `like` holds arrays or `jax.ShapeDtypeStruct`s with shardings.

        Raises:
            InputError: the checkpoint holds other arrays, or another version wrote it in another way.
        """
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        with self._explained(number), ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
            self._compare(number, abstract)
            restored = checkpointer.restore(
                self.path(number), ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
            )
        return restored["state"]

    def _prepare(self, path: Path, state: Any) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._clear_unfinished()
        if path.exists() and self._inspect(int(path.name))[1]:
            shutil.rmtree(path)
        self._check_room(state)

    def _check_room(self, state: Any) -> None:
        """Fail before Orbax's threads do: each of them would print a traceback of its own."""
        needed = int(_ROOM_FACTOR * sum(leaf.nbytes for leaf in jax.tree.leaves(state))) + _ROOM_BYTES
        free = shutil.disk_usage(self._folder).free
        if free < needed:
            raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}: {free} bytes free, {needed} needed")

    def _finish(self, unfinished: Path, path: Path) -> None:
        """Give a written checkpoint its list and its number."""
        order = 1 + max((self._inspect(number)[0] for number in self._all()), default=0)
        write_json(unfinished / _LIST, {"order": order, "files": _sizes(unfinished)})
        shutil.rmtree(path, ignore_errors=True)
        os.replace(unfinished, path)

    def _prune(self) -> None:
        kept = self._survey()[0][-self._keep :]
        for number in set(self._all()) - set(kept):
            shutil.rmtree(self.path(number))

    def _clear_unfinished(self) -> None:
        """Delete what killed saves left; a run has one writer."""
        for pattern in (f"*{_UNFINISHED}*", "*.orbax-checkpoint-tmp*"):
            for entry in self._folder.glob(pattern):
                shutil.rmtree(entry, ignore_errors=True)

    def _survey(self) -> tuple[list[int], list[str]]:
        """Return the whole checkpoints in the order of saving, and what is wrong with each of the others."""
        found = [(*self._inspect(number), number) for number in self._all()]
        whole = sorted((order, number) for order, problem, number in found if not problem)
        problems = [f"{self.path(number)}: {problem}" for _, problem, number in found if problem]
        return [number for _, number in whole], problems

    def _all(self) -> list[int]:
        entries = self._folder.iterdir() if self._folder.is_dir() else ()
        return sorted(int(entry.name) for entry in entries if entry.name.isdecimal())

    def _inspect(self, number: int) -> tuple[int, str]:
        """Return a checkpoint's place in the order of saving, and what is wrong with it; nothing: it is whole.

        A list of older versions holds the files alone: its place is 0. A run that goes on meanwhile may delete files.
        """
        try:
            found = json.loads((self.path(number) / _LIST).read_text(encoding="utf-8"))
            order, expected = (int(found["order"]), found["files"]) if "order" in found else (0, found)
            sizes = _sizes(self.path(number))
            for name, size in expected.items():
                if sizes.get(name) != size:
                    return order, f"{name} has {sizes.get(name, 'no')} bytes, expected {size}"
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return 0, f"{_LIST} is missing or unreadable, so the checkpoint is not whole"
        return order, ""

    def _compare(self, number: int, abstract: Any) -> None:
        """Check that the arrays on the disk are those wanted: Orbax would cast other dtypes without a word."""
        folder = self.path(number) / "state"
        saved = _describe(ocp.StandardCheckpointHandler().metadata(folder).tree)
        expected = _describe(abstract)
        for name in sorted(saved.keys() | expected.keys()):
            found, wanted = saved.get(name, "no such array"), expected.get(name, "no such array")
            if found != wanted:
                raise InputError(f"{folder}: {name}: found {found}, expected {wanted}; {_REMEDY}")

    @contextlib.contextmanager
    def _explained(self, number: int) -> Iterator[None]:
        """Turn what Orbax and its libraries raise, errors of many kinds, into the one line for the user."""
        try:
            yield
        except (InputError, jax.errors.JaxRuntimeError):
            raise
        except Exception as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
            raise InputError(
                f"{self.path(number)}: cannot be read ({reason}); expected a checkpoint that Orbax "
                f"{ocp.__version__} reads; {_REMEDY}"
            ) from error


def _sizes(folder: Path) -> dict[str, int]:
    """Return the size in bytes of every file under a checkpoint's folder, its list excepted."""
    files = (file for file in sorted(folder.rglob("*")) if file.is_file() and file.name != _LIST)
    return {str(file.relative_to(folder)): file.stat().st_size for file in files}


def _describe(tree: Any) -> dict[str, str]:
    """Return dtype and shape of every array of a tree, of arrays or of their descriptions, by its dotted path."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): f"{leaf.dtype}{list(leaf.shape)}"
        for path, leaf in leaves
        if hasattr(leaf, "shape")
    }
