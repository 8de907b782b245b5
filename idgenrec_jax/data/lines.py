"""Line files that users hand in, read so that every fault is located."""

import gzip
from collections.abc import Iterator
from pathlib import Path

from idgenrec_jax.errors import InputError
from idgenrec_jax.files import expand_home


def read_lines(path: str | Path, remedy: str) -> Iterator[tuple[int, str]]:
    """Yields (line number from 1, text without surrounding blanks) for every line that is not blank.

    A name that ends in `.gz` is unpacked on the way. A byte order mark and Windows line ends are dropped.
    `remedy` is the way out that messages about a missing or an empty file end with.

    Raises:
        InputError: the file is missing, unreadable, empty, a broken gzip file, or (naming the line) not UTF-8.
    """
    path = Path(expand_home(path))
    found = False
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as file:
            for number, raw in enumerate(file, 1):
                try:
                    text = raw.decode("utf-8").removeprefix("\ufeff").strip()
                except UnicodeDecodeError as error:
                    fault = f"byte 0x{raw[error.start]:02x} at position {error.start + 1}"
                    raise InputError(f"{path}:{number}: not UTF-8 text ({fault}); save the file as UTF-8") from error
                if text:
                    found = True
                    yield number, text
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; {remedy}") from error
    except (OSError, EOFError) as error:
        # A broken gzip file is an OSError without a number, or an EOFError.
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{path}: cannot be read ({reason}); check the file and its permissions") from error
    if not found:
        raise InputError(f"{path}: the file is empty; {remedy}")
