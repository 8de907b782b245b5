"""Files that are either whole or not there: written to a temporary name and renamed."""

import contextlib
import errno
import glob
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from idgenrec_jax.errors import InputError
from idgenrec_jax.locks import NO_LOCKS, lock_descriptor

# The end of a temporary name: the number of the process, and what keeps apart the names that one process makes.
_TEMPORARY = r"\.\d+(-[0-9a-f]{8})?\.tmp$"


def expand_home(path: str | Path) -> str:
    """Return a path that a user gave with a leading ~ or ~USER as the home folder; any other text as it is."""
    return os.path.expanduser(str(path))


@contextlib.contextmanager
def atomic_writer(path: str | Path) -> Iterator[TextIO]:
    """Open a UTF-8 text file that appears under `path` only when the block ends without an error.

    Raises:
        InputError: the disk is full or the folder cannot be written to; `path` is then as it was before.
    """
    path = Path(expand_home(path))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _temporary(path, _open_file) as (temporary, descriptor):
            with open(descriptor, "w", encoding="utf-8", closefd=False) as file:
                yield file
                file.flush()
                os.fsync(descriptor)
            os.replace(temporary, path)
    except OSError as error:
        raise explain_write_error(error, path) from error


@contextlib.contextmanager
def atomic_folder(path: str | Path, *, replaces: bool = False) -> Iterator[Path]:
    """Make a folder that appears under `path` only when the block, which fills it, ends without an error.

    An empty folder gives way to it, any other only where it `replaces` it; until then it stays as it is.

    Raises:
        InputError: `path` exists already, the disk is full, or the folder around it cannot be written to.
    """
    path = Path(expand_home(path))
    exists_already = f"{path}: exists already; delete it or name another folder"
    try:
        if not replaces and path.exists() and not (path.is_dir() and not any(path.iterdir())):
            raise InputError(exists_already)
        path.parent.mkdir(parents=True, exist_ok=True)
        with _temporary(path, _open_folder) as (temporary, _):
            yield temporary
            if replaces and path.exists():
                with _temporary(path, _open_folder) as (old, _):
                    os.replace(path, old)
                    os.replace(temporary, path)
            else:
                os.replace(temporary, path)
    except OSError as error:
        # Another program has filled it meanwhile: only an empty folder gives way to a rename.
        if error.errno == errno.ENOTEMPTY:
            raise InputError(exists_already) from error
        raise explain_write_error(error, path) from error


def clear_leftovers(folder: str | Path, name: str = "*") -> None:
    """Delete what killed programs left half written in `folder`; what a living one writes stays.

    `name` is the one that the files were to have. Where the file system has no locks, nothing tells the two apart, and
    all of it stays.
    """
    for leftover in Path(folder).glob(f".{name if name == '*' else glob.escape(name)}.*.tmp"):
        if not re.search(_TEMPORARY, leftover.name):
            continue
        with contextlib.suppress(OSError):
            # Some network file systems lock only what is open for writing.
            descriptor = os.open(leftover, os.O_RDONLY if leftover.is_dir() else os.O_RDWR)
            try:
                if lock_descriptor(descriptor, wait=False):
                    _delete(leftover)
            finally:
                os.close(descriptor)


@contextlib.contextmanager
def _temporary(path: Path, make: Callable[[Path], int]) -> Iterator[tuple[Path, int]]:
    """Make a file or folder beside `path`, held (flock) while it is written, and delete what is left of it."""
    clear_leftovers(path.parent, path.name)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    descriptor = make(temporary)
    try:
        # Between making and holding it another program may have taken it for a leftover.
        while not _is_held(descriptor, temporary):
            os.close(descriptor)
            descriptor = make(temporary)
        yield temporary, descriptor
    finally:
        _delete(temporary)
        os.close(descriptor)


def _is_held(descriptor: int, path: Path) -> bool:
    """Hold an open file; return whether it is still the one at `path`. Where there are no locks, nobody deletes."""
    try:
        lock_descriptor(descriptor, wait=True)
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False
    except OSError:
        return True


def _open_file(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)


def _open_folder(path: Path) -> int:
    path.mkdir()
    return os.open(path, os.O_RDONLY)


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def write_json(path: str | Path, value: Any) -> None:
    """Write one JSON document, indented, atomically."""
    with atomic_writer(path) as file:
        json.dump(value, file, indent=2, ensure_ascii=False)
        file.write("\n")


def read_json(path: str | Path, *, remedy: str, fields: Mapping[str, Any] | None = None) -> Any:
    """Return the JSON document in a file; `remedy` is the way out that the error names.

    With `fields` it is an object that has each of them, "outer.inner" within another, of the type or types given.

    Raises:
        InputError: the file is missing, not UTF-8 or not JSON, or nested too deeply; NaN, infinities and halves of
            characters (lone surrogates) are no JSON; or a field is missing or of another type.
    """
    try:
        value = json.loads(Path(expand_home(path)).read_text(encoding="utf-8"), parse_constant=_refuse_constant)
        _check_characters(value)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); {remedy}") from error
    except RecursionError as error:
        raise InputError(f"{path}: expected a JSON document, found one nested too deeply; {remedy}") from error
    except ValueError as error:
        raise InputError(f"{path}: expected a JSON document, found something else ({error}); {remedy}") from error
    if fields is not None:
        _check_fields(value, fields, path, remedy)
    return value


def _check_fields(value: Any, fields: Mapping[str, Any], path: str | Path, remedy: str) -> None:
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected an object, found {type(value).__name__}; {remedy}")
    for name, kinds in fields.items():
        found: Any = value
        for key in name.split("."):
            found = found.get(key) if isinstance(found, dict) else None
        kinds = kinds if isinstance(kinds, tuple) else (kinds,)
        if not isinstance(found, kinds) or (isinstance(found, bool) and bool not in kinds):
            expected = " or ".join(kind.__name__ for kind in kinds)
            raise InputError(f"{path}: {name} is {found!r:.60}, expected {expected}; {remedy}")


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def _check_characters(value: Any) -> None:
    """Raise ValueError where a text cannot be written again."""
    json.dumps(value, ensure_ascii=False).encode("utf-8")


def is_disk_full(error: BaseException | None) -> bool:
    """Tell whether an error, or one it was raised from, says that no space is left (libraries often only quote it)."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if "No space left on device" in str(error) or "Disk quota exceeded" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def explain_write_error(error: OSError, path: str | Path) -> InputError:
    """Return the one-line error for a write that failed."""
    if is_disk_full(error):
        return InputError(f"{path}: no space left on the disk; free some and run the same command again to go on")
    # What libraries raise often has no number, and so no text of its own.
    reason = error.strerror or " ".join(str(error).split())
    return InputError(f"{path}: cannot be written ({reason}); expected a folder with write permission")


def explain_lock_error(error: OSError, path: str | Path) -> InputError:
    """Return the one-line error for a lock's file that cannot be written or locked."""
    if error.errno in NO_LOCKS:
        return InputError(
            f"{path}: its file system has no locks ({error.strerror}), which keep two processes from one folder; name "
            "a folder on a file system that has them"
        )
    return explain_write_error(error, path)
