"""What a raw format gives: timed interactions, the texts of items, and how its files are told from others.

A format only says where things stand. Faults, filters, the order of time and all files are the business of
`preparation.py`; reading records is that of `rows.py`, and `tables.py` makes most formats from the names of columns.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from idgenrec_jax.data.sources.rows import Reading
from idgenrec_jax.data.sources.sniffing import RawFile


class Interaction(NamedTuple):
    """One event.

    `time` is in seconds since 1970, UTC, or only an order where the format has no times. `rating` is None where there
    is none. `part` is 0, 1 or 2 where the publisher put the event into training, validation or test.
    """

    user: str
    item: str
    time: float
    rating: float | None = None
    part: int = 0


@dataclass(frozen=True)
class Items:
    """The texts of items.

    `fields` names all that there are, and says of each whether it is written unless others are asked for.
    `read(reading, wanted, names)` gives (key, {name: text}) for items in `wanted`; an item may come several times.
    """

    fields: Mapping[str, bool]
    read: Callable[[Reading, Set[str], Collection[str]], Iterator[tuple[str, Mapping[str, str]]]]


NO_ITEMS = Items({}, lambda reading, wanted, names: iter(()))


@dataclass(frozen=True)
class RawData:
    """Raw files, recognised.

    - `interactions(reading)` gives the events in the order of the files.
    - `reason` is why the files were taken for this format; a person reads it.
    - `has_times` is False where only the order of the files tells what came first.
    - `has_split` is True where the events' `part` is the publisher's split.
    - `files` are read for events or texts; the card has their checksums.
    - `notes` are what a person should know of these files.
    """

    interactions: Callable[[Reading], Iterator[Interaction]]
    items: Items
    reason: str
    files: Sequence[Path]
    has_times: bool = True
    has_split: bool = False
    notes: Sequence[str] = field(default=())


@dataclass(frozen=True)
class Source:
    """A raw format.

    `help` says in a line what it is, `expects` which files it consists of, `licence` what is known of the terms.
    `recognise` opens files of the format, or returns None where they are of another; it looks at their first records.
    It raises InputError where several files of the format could be meant.
    """

    help: str
    expects: str
    recognise: Callable[[Sequence[RawFile]], RawData | None]
    licence: str = "see the publisher's terms"
