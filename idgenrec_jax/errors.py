"""The one exception a user is meant to read."""

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

Value = TypeVar("Value")


class InputError(ValueError):
    """A mistake in what the user gave: a file, a line, a flag.

    The message is one line that names the place, what was found, what was expected and the way out. The launch
    programs print it as `error: ...` and exit with status 2, without a traceback.
    """


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the known name that is most like `name`."""
    return difflib.get_close_matches(name, list(known), n=1, cutoff=0.0)[0]


def look_up(table: Mapping[str, Value], name: str, flag: str) -> Value:
    """Return what a table has under the name that `flag` was given.

    Raises:
        InputError: it has none; the names it has are listed and the nearest is suggested.
    """
    if name in table:
        return table[name]
    raise InputError(f"{flag}: found {name!r}, expected one of {', '.join(table)}; nearest: {nearest(name, table)}")
