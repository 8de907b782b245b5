"""Sequences of users out of rows that each hold a target and the history before it, as benchmarks publish them.

Such rows repeat: a user's next row has the history of the one before and its target. Some publishers write the rows of
a user from the oldest target to the newest, others the reverse, and long histories are cut to their newest items.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from absl import logging

from idgenrec_jax.data.lines import named
from idgenrec_jax.data.sources.rows import Form, Reading, Rows
from idgenrec_jax.data.sources.source import Interaction
from idgenrec_jax.data.sources.tables import check_unrated
from idgenrec_jax.data.sources.values import SHOWN_PLACES, key_of


@dataclass
class _Sequence:
    """A user's items, oldest first, the part of each, the row that was read last, and the length of the longest."""

    items: list[str] = field(default_factory=list)
    parts: list[int] = field(default_factory=list)
    row: list[str] = field(default_factory=list)
    longest: int = 0

    def add(self, row: list[str], part: int) -> bool:
        """Take a row, its target last; tell whether it fits what is known."""
        previous, longest = self.row, self.longest
        self.row, self.longest = row, max(longest, len(row))
        items, history = self.items, row[:-1]
        if not items:
            self._append(history, 0)
            self._append(row[-1:], part)
            return True
        follows = history == previous[1:] or (history == previous[:-1] and row != previous)
        later = part > self.parts[-1] or len(row) > longest or follows
        if not later:
            if _is_within(row, items):
                return True
            # The row overlaps the beginning of what is known: histories are cut, and targets come newest first.
            common = next((size for size in range(len(history), 0, -1) if items[:size] == row[-size:]), 0)
            if common:
                self.items, self.parts = row[:-common] + items, [0] * (len(row) - common) + self.parts
                return True
        common = next((size for size in range(len(history), 0, -1) if items[-size:] == row[:size]), 0)
        self._append(history[common:] if common else [], self.parts[-1])
        self._append(row[-1:], part)
        return bool(common) or _is_within(history, items)

    def _append(self, items: list[str], part: int) -> None:
        self.items += items
        self.parts += [part] * len(items)


def _is_within(part: list[str], items: list[str]) -> bool:
    return any(items[start : start + len(part)] == part for start in range(len(items) - len(part) + 1))


def interactions_of_histories(
    files: Sequence[Path], form: Form, columns: tuple[str, str, str], listed: Callable[[Any], Sequence[Any]]
) -> Callable[[Reading], Iterator[Interaction]]:
    """Return what reads interactions from files of rows; the place of a file in `files` is the part of its targets.

    `columns` are those of the user, the history and the target, `listed` gives the keys in a history. Items of a
    history that were never a target are of the first part. The time of an event is its place in its sequence.
    """
    user_name, history_name, item_name = columns

    def read(reading: Reading) -> Iterator[Interaction]:
        def parse(user: Any, history: Any, item: Any) -> tuple[str, list[str]]:
            check_unrated(reading)
            row = [key_of(each, history_name) for each in listed(history)]
            return key_of(user, user_name), [*row, key_of(item, item_name)]

        sequences: dict[str, _Sequence] = {}
        keys: dict[str, str] = {}  # One text for each key, however many rows repeat it.
        unfit, places = 0, []
        for part, path in enumerate(files):
            rows = Rows(path, form, columns, reading)
            for user, row in rows.parsed(parse):
                if not sequences.setdefault(user, _Sequence()).add([keys.setdefault(key, key) for key in row], part):
                    unfit += 1
                    places += [f"{path}:{rows.line} (user {named(user)})"] if unfit <= SHOWN_PLACES else []
        if unfit:
            logging.warning(
                "%d histories do not continue the rows before them, and only their targets were taken: %s",
                unfit,
                ", ".join(places),
            )
        for user, sequence in sequences.items():
            for time, (item, part) in enumerate(zip(sequence.items, sequence.parts, strict=True)):
                yield Interaction(user, item, time, None, part)

    return read
