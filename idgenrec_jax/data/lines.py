"""Line files and the JSON values in their lines, read so that every fault names its file and line."""

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from idgenrec_jax.errors import InputError
from idgenrec_jax.files import expand_home

_SHOWN = 60


def read_lines(path: str | Path, remedy: str) -> Iterator[tuple[int, str]]:
    """Yield (line number from 1, text without surrounding blanks) for every line that is not blank.

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
    except (OSError, EOFError, zlib.error) as error:
        # A broken gzip file is an OSError without a number, an EOFError or, in the middle, an error of zlib.
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{path}: cannot be read ({reason}); check the file and its permissions") from error
    if not found:
        raise InputError(f"{path}: the file is empty; {remedy}")


def parse_json(text: str, place: str, remedy: str) -> Any:
    """Return the JSON value in a text; `place` is its "file:line".

    Raises:
        InputError: the text is not JSON, or nested more deeply than Python can follow.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise InputError(f"{place}: not a JSON object (nested too deeply); {remedy}") from error
    except ValueError as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        raise InputError(f"{place}: not a JSON object ({reason}); {remedy}") from error


def leaves(value: Any) -> Iterator[Any]:
    """Yield what (nested) lists hold, in order, or the value itself where it is no list."""
    waiting = [value]  # A stack, not recursion: lists may be nested as deeply as JSON allows.
    while waiting:
        part = waiting.pop()
        if isinstance(part, list):
            waiting.extend(reversed(part))
        else:
            yield part


def holds_surrogate(text: str) -> bool:
    """Tell whether a text holds half a surrogate pair: JSON can spell one ("\\ud800"), but UTF-8 cannot write it."""
    return not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text)


def named(key: str) -> str:
    """Return a key as a message names it: as it is, or as `shown` where it is long or not printable."""
    return key if len(key) <= _SHOWN and key.isprintable() else shown(key)


def shown(value: Any) -> str:
    """Return a value as a message quotes it: on one line, in ASCII where it is odd, and cut where it is long."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # An integer of more than 4,300 digits, or lists in lists in lists.
        text = f"a {type(value).__name__} too large to show"
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."
