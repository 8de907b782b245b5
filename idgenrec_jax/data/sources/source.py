"""What a raw format gives, timed interactions and the fields of items, and the checks of values that all formats need.

A format only reads. Ratings, repeats, the k-core, the order of time and all files are the business of `preparation.py`.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from idgenrec_jax.data.lines import holds_surrogate, shown
from idgenrec_jax.data.words import is_missing
from idgenrec_jax.errors import InputError

_LARGEST = 2**63
_REMEDY = "mend or remove the line"


@dataclass(frozen=True, slots=True)
class Interaction:
    """One event; `time` is in seconds since 1970, and `rating` is None where the event has none."""

    user: str
    item: str
    time: int | float
    rating: int | float | None = None


@dataclass(frozen=True)
class RawData:
    """A folder of raw files, opened.

    `interactions` gives ("file:line", event) in the order of the file and is read once. `item_fields(items)` gives the
    fields of those of `items` that the files describe: field name -> text; what it leaves out is written without text.
    Both raise InputError, naming file and line, where they meet a fault.
    """

    interactions: Iterable[tuple[str, Interaction]]
    item_fields: Callable[[Set[str]], Mapping[str, Mapping[str, str]]]


@dataclass(frozen=True)
class Source:
    """A raw format: a line that says what it is, and how a folder of it is opened."""

    help: str
    read: Callable[[Path], RawData]


def files_of(folder: Path, remedy: str) -> list[Path]:
    """Return what lies in the --input folder, sorted by name; `remedy` says what is expected there.

    Raises:
        InputError: there is no such folder, or it cannot be read.
    """
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"--input={folder}: no such folder; {remedy}") from error
    except (OSError, ValueError) as error:  # No permission, a name too long, or one with a null character.
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"--input={folder}: cannot be read ({reason}); {remedy}") from error


def key_of(value: Any, name: str, place: str) -> str:
    """Return the key of a user or an item as it is given.

    Raises:
        InputError: it is no text, is blank, has blanks inside, or cannot be written as UTF-8.
    """
    if not isinstance(value, str) or len(value.split()) != 1 or holds_surrogate(value):
        raise InputError(f"{place}: {name} is {shown(value)}, not a name without blanks; {_REMEDY}")
    return value.strip()


def number_of(value: Any, name: str, place: str) -> int | float:
    """Return a finite number below 2**63, given as such or as text.

    Raises:
        InputError: it is something else; true and false are no numbers.
    """
    number = _parse(value) if isinstance(value, str) else value
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise InputError(f"{place}: {name} is {shown(value)}, not a number; {_REMEDY}")
    # An integer too long for a float is compared first: isfinite could not take it.
    if not -_LARGEST < number < _LARGEST or not math.isfinite(number):
        raise InputError(f"{place}: {name} is {shown(value)}, not a finite number below 2**63; {_REMEDY}")
    return number


def rating_of(value: Any, name: str, place: str) -> int | float | None:
    """Return a rating as `number_of` does, or None for one that is not there: null, NaN, blank, "N/A" and the like."""
    if value is None or value != value or isinstance(value, str) and (not value.strip() or is_missing(value)):
        return None
    return number_of(value, name, place)


def _parse(text: str) -> int | float | None:
    if "_" in text:  # Python would read 1_0 as ten.
        return None
    try:
        return int(text) if text.isdigit() else float(text)
    except ValueError:
        return None
