"""Values of raw records, checked: keys, times and ratings; and what becomes of records that are faulty."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from idgenrec_jax.data.lines import holds_surrogate, shown
from idgenrec_jax.data.words import is_missing
from idgenrec_jax.errors import InputError

BAD_LINES = ("stop", "skip")
"""What a faulty record does: it ends the program, or it is counted and left out."""

SHOWN_PLACES = 5
LONGEST_KEY = 1000
_LARGEST = 2**63
_LARGEST_KEY = 10**40  # Some keys are hashes of 128 bits.
_SECONDS = {"s": 1, "ms": 1_000, "us": 1_000_000}
_REMEDY = "mend or remove the line, or leave such lines out with --bad_lines=skip"


class RowFault(ValueError):
    """What is wrong with one record; who reads the file knows the place."""


@dataclass
class Faults:
    """The faulty records of a preparation: the first stops it, or all are counted and the first five places kept."""

    skip: bool = False
    count: int = 0
    places: list[str] = field(default_factory=list)
    _lines: dict[Path, set[int | str]] = field(default_factory=dict)

    def note(self, path: Path, line: int | str, fault: RowFault | str) -> None:
        """Count a faulty record, once, however often its file is read; `line` is its number, or what else names it.

        Raises:
            InputError: faulty records are not skipped; file, line and remedy are named.
        """
        message = f"{path}:{line}: {fault}"
        if not self.skip:
            raise InputError(f"{message}; {_REMEDY}")
        lines = self._lines.setdefault(path, set())
        if line in lines:
            return
        lines.add(line)
        self.count += 1
        if len(self.places) < SHOWN_PLACES:
            self.places.append(message)


def key_of(value: Any, name: str) -> str:
    """Return the key of a user or an item as text, exactly; only blanks around it are cut off.

    A whole number is its digits, of which it has up to forty. Blanks inside, leading zeros and any script are kept.

    Raises:
        RowFault: it is no text or whole number, is blank or longer than LONGEST_KEY, or holds control characters or
            halves of characters.
    """
    if type(value) is not str:
        if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
            # Tables that had an empty cell somewhere hold whole numbers as 12.0.
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or abs(value) >= _LARGEST_KEY:
            raise RowFault(f"{name} is {shown(value)}, expected a key: a text or a whole number")
        return str(value)
    key = value if value.isalnum() else value.strip()
    if not key or not key.isprintable() and any(is_control(character) for character in key):
        raise RowFault(f"{name} is {shown(value)}, expected a key without control characters that is not blank")
    if len(key) > LONGEST_KEY:
        raise RowFault(f"{name} has {len(key)} characters, expected a key of at most {LONGEST_KEY}: {shown(key)}")
    if holds_surrogate(key):
        raise RowFault(f"{name} is {shown(value)}, which holds half a character that no file can")
    return key


def is_control(character: str) -> bool:
    """Tell whether a character is a control character, a line end or a tab."""
    return character < " " or "\x7f" <= character <= "\x9f" or character in "\u2028\u2029"


def number_of(value: Any, name: str) -> int | float:
    """Return a finite number below 2**63, given as such or as text.

    Raises:
        RowFault: it is something else; true and false are no numbers.
    """
    kind = type(value)
    number = _parse(value) if kind is str else value
    if kind is bool or not isinstance(number, int | float):
        raise RowFault(f"{name} is {shown(value)}, expected a number")
    # An integer too long for a float is compared first: isfinite could not take it.
    if not -_LARGEST < number < _LARGEST or not math.isfinite(number):
        raise RowFault(f"{name} is {shown(value)}, expected a finite number below 2**63")
    return number


def rating_of(value: Any, name: str) -> int | float | None:
    """Return a rating as `number_of` does, or None for one that is not there: null, NaN, blank, "N/A" and the like."""
    if value is None or value != value or isinstance(value, str) and (not value.strip() or is_missing(value)):
        return None
    return number_of(value, name)


def time_reader(unit: str, name: str) -> Callable[[Any], float]:
    """Return what turns a value into seconds since 1970, UTC.

    `unit` is s, ms, us, iso (2023-06-01, 2023-06-01T12:00:00Z; without an offset UTC is meant) or a format of
    strptime, which has a %. A date that a Parquet file holds as such needs no unit. The reader raises RowFault.

    Raises:
        InputError: the unit is something else, or no format that strptime knows.
    """
    if unit in _SECONDS:
        scale = _SECONDS[unit]

        def from_number(value: Any) -> float:
            if isinstance(value, date):
                return _stamp(value)
            return number_of(value, name) / scale

        return from_number
    if unit != "iso" and not _is_format(unit):
        raise InputError(f"--time_unit={unit}: expected s, ms, us, iso or a format such as %Y-%m-%d")

    def from_text(value: Any) -> float:
        try:
            if isinstance(value, date):
                return _stamp(value)
            text = str(value).strip()
            return _stamp(datetime.fromisoformat(text) if unit == "iso" else datetime.strptime(text, unit))
        except (ValueError, OverflowError) as error:
            expected = "a date such as 2023-06-01 or 2023-06-01T12:00:00" if unit == "iso" else f"a date as {unit}"
            raise RowFault(f"{name} is {shown(value)}, expected {expected}") from error

    return from_text


def _is_format(unit: str) -> bool:
    """Whether strptime can follow a format; it looks at a whole format whatever the text."""
    try:
        datetime.strptime("", unit)
    except ValueError as error:
        return "%" in unit and "does not match format" in str(error)
    except re.error:  # The same directive twice.
        return False
    return False


def _stamp(moment: date) -> float:
    if not isinstance(moment, datetime):
        moment = datetime(moment.year, moment.month, moment.day)
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _parse(text: str) -> int | float | None:
    if "_" in text:  # Python would read 1_0 as ten.
        return None
    try:
        return int(text) if text.isdigit() else float(text)
    except ValueError:
        return None
