"""The one exception a user is meant to read."""

import difflib
from collections.abc import Collection, Iterable, Mapping
from typing import TypeVar

Value = TypeVar("Value")
# Characters of a wrong name that are compared: the time grows with their number, and no known name is longer.
_COMPARED = 100


class InputError(ValueError):
    """A mistake in what the user gave: a file, a line, a flag.

    The message is one line that names the place, what was found, what was expected and the way out. The launch
    programs print it as `error: ...` and exit with status 2, without a traceback.
    """


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the known name that is most like `name`."""
    return difflib.get_close_matches(name[:_COMPARED], list(known), n=1, cutoff=0.0)[0]


def unknown_name(flag: str, name: str, known: Collection[str]) -> InputError:
    """Return the error about a name that `flag` was given and that is none of the known ones."""
    return InputError(f"{flag}: found {name!r}, expected one of {', '.join(known)}; nearest: {nearest(name, known)}")


def look_up(table: Mapping[str, Value], name: str, flag: str) -> Value:
    """Return what a table has under the name that `flag` was given.

    Raises:
        InputError: it has none; the names it has are listed and the nearest is suggested.
    """
    if name not in table:
        raise unknown_name(flag, name, table)
    return table[name]
