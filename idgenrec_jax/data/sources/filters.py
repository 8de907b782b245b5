"""Which interactions stay: repeats, the k-core, and the order of time; over millions, with numpy."""

import hashlib
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from idgenrec_jax.data.sources.source import Interaction

DUPLICATES = ("first", "last", "keep")
"""What becomes of a user's further events with one item: only the first or the last counts, or all do."""


class Events(NamedTuple):
    """Interactions in the order of the files, column by column; users and items are numbers (see `Log`)."""

    users: Int[np.ndarray, " events"]
    items: Int[np.ndarray, " events"]
    times: Float[np.ndarray, " events"]
    parts: Int[np.ndarray, " events"]

    def __len__(self) -> int:
        """Return the number of events."""
        return len(self.users)

    def only(self, kept: Bool[np.ndarray, " events"] | Int[np.ndarray, " kept"]) -> "Events":
        """Return the events of a mask, or those at some places."""
        return Events(*(column[kept] for column in self))


@dataclass(frozen=True)
class Log:
    """All events that were read, and the keys of their users and items by number."""

    events: Events
    user_keys: list[str]
    item_keys: list[str]


def collect(interactions: Iterable[Interaction], lowest_rating: float, since: float, until: float) -> tuple[Log, dict]:
    """Return the events that count, and how many were read, left out for their rating, or for their time.

    An event counts from a rating of `lowest_rating` on (0: any, or none), and from `since` until before `until`. Both
    are in seconds.
    """
    users: dict[str, int] = {}
    items: dict[str, int] = {}
    user_numbers, item_numbers, times, parts = array("i"), array("i"), array("d"), array("b")
    # Attributes are looked up once, not for each of millions of events.
    add_user, add_item, add_time, add_part = user_numbers.append, item_numbers.append, times.append, parts.append
    read = low = outside = 0
    for user, item, time, rating, part in interactions:
        read += 1
        if lowest_rating > 0 and (rating is None or rating < lowest_rating):
            low += 1
        elif not since <= time < until:
            outside += 1
        else:
            add_user(users.setdefault(user, len(users)))
            add_item(items.setdefault(item, len(items)))
            add_time(time)
            add_part(part)
    events = Events(
        np.frombuffer(user_numbers, np.int32),
        np.frombuffer(item_numbers, np.int32),
        np.frombuffer(times, np.float64),
        np.frombuffer(parts, np.int8),
    )
    return Log(events, list(users), list(items)), {"read": read, "low_rating": low, "outside_time": outside}


def drop_exact_repeats(events: Events) -> tuple[Events, int]:
    """Return the first of all events of one user with one item at one time, in order, and the number of the others.

    They are one event that the source has recorded more than once: kept, it would count twice toward the k-core, and a
    history could end in its own target.
    """
    order = np.lexsort((events.times, events.items, events.users))
    same = _same_pair(events, order) & (np.diff(events.times[order]) == 0)
    kept = np.ones(len(events), bool)
    # The sort is stable: of equal events the first in the file comes first.
    kept[order[1:][same]] = False
    return events.only(kept), len(events) - int(kept.sum())


def choose_among_repeats(events: Events, duplicates: str) -> tuple[Events, int]:
    """Return what `duplicates` (see DUPLICATES) leaves of each user's events with one item, and the number of repeats.

    Raises:
        ValueError: `duplicates` is something else.
    """
    if duplicates not in DUPLICATES:
        raise ValueError(f"duplicates is one of {', '.join(DUPLICATES)}, not {duplicates!r}")
    order = np.lexsort((events.times, events.items, events.users))
    same = _same_pair(events, order)
    repeats = int(same.sum())
    if duplicates == "keep":
        return events, repeats
    kept = np.ones(len(events), bool)
    kept[(order[1:] if duplicates == "first" else order[:-1])[same]] = False
    return events.only(kept), repeats


def core_filter(events: Events, user_core: int, item_core: int) -> Events:
    """Return what is left when users and items with fewer events are dropped, as often as it takes."""
    while True:
        enough = np.bincount(events.users)[events.users] >= user_core if len(events) else np.ones(0, bool)
        if len(events):
            enough &= np.bincount(events.items)[events.items] >= item_core
        if enough.all():
            return events
        events = events.only(enough)


def in_order_of_time(events: Events, user_keys: Sequence[str], item_keys: Sequence[str]) -> tuple[Events, int]:
    """Return the events user by user, oldest first, and the number of those that share user and time with another.

    What the publisher put into training comes before validation, and that before test. Ties are broken by a hash of
    user and item: raw files list ties by item key, an order that a model could learn and that says nothing about what
    was bought first. Users stand in the order of their first event in the files.
    """
    _, first, inverse = np.unique(events.users, return_index=True, return_inverse=True)
    ranks = np.argsort(np.argsort(first))[inverse].astype(np.int32)
    order = np.lexsort((events.times, events.parts, ranks))
    same = np.logical_and.reduce([np.diff(column[order]) == 0 for column in (ranks, events.parts, events.times)])
    tied = np.zeros(len(events), bool)
    tied[1:] |= same
    tied[:-1] |= same
    # [events]: where a run of equal user and time starts, counted along the events.
    starts = np.flatnonzero(tied & ~np.concatenate([[False], same])) if len(events) else np.zeros(0, int)
    for start in starts:
        end = start + 1
        while end < len(events) and same[end - 1]:
            end += 1
        keys = [_tie_key(user_keys[events.users[place]], item_keys[events.items[place]]) for place in order[start:end]]
        order[start:end] = order[start:end][np.argsort(np.array(keys), kind="stable")]
    return events.only(order), int(tied.sum())


def _same_pair(events: Events, order: Int[np.ndarray, " events"]) -> Bool[np.ndarray, " steps"]:
    """Whether each event, in this order, has user and item of the one before."""
    return (np.diff(events.users[order]) == 0) & (np.diff(events.items[order]) == 0)


def _tie_key(user: str, item: str) -> bytes:
    return hashlib.blake2b(f"{user} {item}".encode(), digest_size=8).digest()
