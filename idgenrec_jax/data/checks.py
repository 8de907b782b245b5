"""Signs that a data set is not what leave-one-out takes it for: its order and its keys."""

import re
import unicodedata
from collections.abc import Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from jaxtyping import Int

SHORTEST_JUDGED = 5
"""A sequence of five different items is in order by chance once in 120; shorter ones say too little."""

_DIGITS = re.compile(r"([0-9]+)")


def share_in_key_order(items: Sequence[str], sequences: Sequence[Int[np.ndarray, " _"]]) -> tuple[float, int]:
    """Return the share of the sequences of five items or more that follow their items' keys, and their number.

    `sequences` hold indices into `items`. The order is that of text ("i10" before "i9") or that of numbers in text
    ("i9" before "i10"), whichever more sequences follow, upwards or downwards. The share is 0 where no sequence is
    long enough; one that repeats a single item follows nothing.
    """
    judged = [sequence for sequence in sequences if len(sequence) >= SHORTEST_JUDGED]
    if not judged:
        return 0.0, 0
    together = np.concatenate(judged)
    starts = np.cumsum([0, *map(len, judged[:-1])])
    most = 0
    for order in (sorted(set(items)), sorted(set(items), key=_natural)):
        place = {item: number for number, item in enumerate(order)}
        rank = np.asarray([place[item] for item in items], dtype=np.int64)
        steps = np.diff(rank[together])
        # From one sequence to the next there is no step.
        steps[starts[1:] - 1] = 0
        lowest, highest = np.minimum.reduceat(steps, starts), np.maximum.reduceat(steps, starts)
        upwards, downwards = (lowest >= 0) & (highest > 0), (highest <= 0) & (lowest < 0)
        most = max(most, int(upwards.sum()), int(downwards.sum()))
    return most / len(judged), len(judged)


def key_steps(items: Sequence[str], sequences: Sequence[Int[np.ndarray, " _"]]) -> tuple[int, int, int]:
    """Return how many transitions of the sequences go up in the item keys, how many down, and how many there are.

    `sequences` hold indices into `items`; keys are compared as text. A transition to the same item goes nowhere.
    """
    if not sequences:
        return 0, 0, 0
    place = {item: number for number, item in enumerate(sorted(set(items)))}
    rank = np.asarray([place[item] for item in items], dtype=np.int64)
    steps = np.diff(rank[np.concatenate(sequences)])
    # From one sequence to the next there is no step.
    within = np.ones(len(steps), dtype=bool)
    within[np.cumsum([len(sequence) for sequence in sequences[:-1]], dtype=np.int64) - 1] = False
    return int((steps[within] > 0).sum()), int((steps[within] < 0).sum()), int(within.sum())


def warn_about_order(path: Path, items: Sequence[str], sequences: Sequence[Int[np.ndarray, " _"]]) -> None:
    """Warn loudly where over half of the sequences that can be judged follow their items' keys instead of time."""
    share, judged = share_in_key_order(items, sequences)
    if share > 0.5:
        logging.warning(
            "%s: NOT IN THE ORDER OF TIME, it seems: of the %d users with %d items or more, %.0f%% have all of them in "
            "the order of the item keys. Leave-one-out by time means nothing then: the last item is not the latest, "
            "and a model can score by learning the keys. Sort every user's items by time, oldest first, as "
            "`python -m launch.prepare_data` does; all is well only where keys were given out in the order of time",
            path,
            judged,
            SHORTEST_JUDGED,
            100 * share,
        )


def warn_about_keys(path: Path, kind: str, keys: Sequence[str], missing_words: Set[str]) -> None:
    """Warn of keys that say "missing", and of different keys that look the same; `kind` is "user" or "item"."""
    missing = [key for key in keys if key.casefold() in missing_words]
    if missing:
        logging.warning(
            "%s: the %s key %r reads like a missing value; if it is one, remove its lines", path, kind, missing[0]
        )
    first: dict[str, str] = {}
    for key in keys:
        # Keys in ASCII have one spelling; this spares most data sets the work.
        if not key.isascii():
            other = first.setdefault(unicodedata.normalize("NFC", key), key)
            if other != key:
                logging.warning(
                    "%s: the %s keys %a and %a differ only in how accents are written and count as two; "
                    "write them in one way if they are one",
                    path, kind, other, key,
                )  # fmt: skip
                return


def _natural(key: str) -> list[Any]:
    """A sort key that reads runs of digits as numbers; texts and numbers alternate, so that like meets like."""
    parts = _DIGITS.split(key)
    return [part if place % 2 == 0 else _number(part) for place, part in enumerate(parts)]


def _number(digits: str) -> tuple[int, str]:
    """Digits in the order of their numbers, without `int`, which refuses more than 4,300 of them."""
    digits = digits.lstrip("0")
    return len(digits), digits
