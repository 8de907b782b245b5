"""Files that are either whole or not there: written to a temporary name and renamed."""

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from idgenrec_jax.errors import InputError


@contextlib.contextmanager
def atomic_writer(path: str | Path) -> Iterator[TextIO]:
    """Open a UTF-8 text file that appears under `path` only when the block ends without an error.

    Raises:
        InputError: the disk is full or the folder cannot be written to; `path` is then as it was before.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "w", encoding="utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise explain_write_error(error, path) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


@contextlib.contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Make a folder that appears under `path` only when the block, which fills it, ends without an error.

    Raises:
        InputError: `path` exists already, the disk is full, or the folder around it cannot be written to.
    """
    path = Path(path)
    if path.exists():
        raise InputError(f"{path}: exists already; delete it or name another folder")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        # A killed process may have left it, and process numbers come again.
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise explain_write_error(error, path) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_json(path: str | Path, value: Any) -> None:
    """Write one JSON document, indented, atomically."""
    with atomic_writer(path) as file:
        json.dump(value, file, indent=2, ensure_ascii=False)
        file.write("\n")


def read_json(path: str | Path, *, remedy: str) -> Any:
    """Return the JSON document in a file; `remedy` is the way out that the error names.

    Raises:
        InputError: the file is missing, not UTF-8 or not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); {remedy}") from error
    except ValueError as error:
        raise InputError(f"{path}: expected a JSON document, found something else ({error}); {remedy}") from error


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
    return InputError(f"{path}: cannot be written ({error.strerror}); expected a folder with write permission")
