"""From any raw format to a data folder: ratings, repeats, the k-core, the order of time, and the files."""

import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from absl import logging

from idgenrec_jax.data.dataset import ITEMS_FILE, SEQUENCES_FILE
from idgenrec_jax.data.lines import named
from idgenrec_jax.data.sources import SOURCES
from idgenrec_jax.data.sources.source import Interaction
from idgenrec_jax.data.words import MISSING_WORDS, is_missing
from idgenrec_jax.errors import InputError
from idgenrec_jax.files import atomic_folder, atomic_writer, expand_home, write_json

SUMMARY_FILE = "preparation.json"
DUPLICATES = ("keep", "first", "last")
"""What becomes of a user's further events with one item at other times: all kept, or only the first or the last."""


@dataclass(frozen=True)
class Preparation:
    """What was done to the raw data; written beside the data as preparation.json.

    The counts follow one another:
    - `raw_interactions` are in the files; those with a rating below `min_rating` go first.
    - `exact_repeats` have user, item and time of one before; they are dropped.
    - `repeats` have user and item of one before, at another time; `duplicates` says which of them are kept.
    - `interactions` are what the k-core left of the rest.
    """

    source: str
    core: int
    min_rating: float
    duplicates: str
    raw_interactions: int
    exact_repeats: int
    repeats: int
    users: int
    items: int
    interactions: int
    tied_interactions: int
    tie_rule: str = "interactions of a user with equal timestamps are ordered by a hash of user and item"

    def summary(self) -> str:
        """Return three lines for the screen: what came out, how ties were broken, what became of repeats."""
        fate = "kept" if self.duplicates == "keep" else "dropped"
        return (
            f"{self.users} users, {self.items} items, {self.interactions} of {self.raw_interactions} interactions\n"
            f"{self.tied_interactions} of them share user and timestamp with another: {self.tie_rule}\n"
            f"before the k-core: {self.exact_repeats} exact repeats (same user, item and time) dropped; "
            f"{self.repeats} repeats of user and item at other times {fate} (--duplicates={self.duplicates})"
        )


def prepare(
    source: str, input_folder: str | Path, output: str | Path, *, core: int, min_rating: float, duplicates: str = "keep"
) -> Preparation:
    """Make a data folder from a folder of raw files of the format `source` (see SOURCES); return what was done.

    `output` is checked before anything is read, and appears whole or not at all.

    Raises:
        InputError: `output` is in use or cannot be made, a raw file is missing or faulty (file, line and remedy),
            a rating is needed and missing, or nothing is left after filtering.
    """
    output = Path(expand_home(output))
    _check_output(output)
    if not math.isfinite(min_rating):
        raise InputError(f"--min_rating={min_rating}: expected a finite number, such as 4")
    raw = SOURCES[source].read(Path(expand_home(input_folder)))
    counted: Counter[str] = Counter()
    rated = _rated(raw.interactions, min_rating, counted)
    distinct, exact_repeats = drop_exact_repeats(rated)
    chosen, repeats = choose_among_repeats(distinct, duplicates)
    kept = core_filter(chosen, core)
    if not kept:
        raise InputError(
            f"--core={core} --min_rating={min_rating:g}: none of the {counted['raw']} interactions is left after "
            "filtering; lower them"
        )
    sequences, tied = chronological_sequences(kept)
    items = sorted({interaction.item for interaction in kept})
    fields = raw.item_fields(frozenset(items))
    lacking = [item for item in items if item not in fields]
    if lacking:
        names = ", ".join(map(named, lacking[:3])) + (", ..." if len(lacking) > 3 else "")
        logging.warning(
            "%s: lacks %d of %d items (%s), which get no text", input_folder, len(lacking), len(items), names
        )
    preparation = Preparation(
        source=source,
        core=core,
        min_rating=min_rating,
        duplicates=duplicates,
        raw_interactions=counted["raw"],
        exact_repeats=exact_repeats,
        repeats=repeats,
        users=len(sequences),
        items=len(items),
        interactions=len(kept),
        tied_interactions=tied,
    )
    records = [{"id": item, **fields.get(item, {})} for item in items]
    _blank_missing_values(records, input_folder)
    lines = [" ".join([user, *sequence]) for user, sequence in sequences.items()]
    _write_folder(output, [json.dumps(record, ensure_ascii=False) for record in records], lines, preparation)
    return preparation


def _rated(
    events: Iterable[tuple[str, Interaction]], min_rating: float, counted: Counter[str]
) -> Iterable[Interaction]:
    """Yields the events with a rating of at least `min_rating`, every event where that is 0; counts all as "raw"."""
    for place, event in events:
        counted["raw"] += 1
        if min_rating <= 0:
            yield event
        elif event.rating is None:
            raise InputError(
                f"{place}: has no rating, and --min_rating={min_rating:g} needs one; "
                "mend or remove the line, or leave out --min_rating"
            )
        elif event.rating >= min_rating:
            yield event


def drop_exact_repeats(interactions: Iterable[Interaction]) -> tuple[list[Interaction], int]:
    """Return the first of all events of one user with one item at one time, in order, and the number of the others.

    They are one event that the source has recorded more than once: kept, it would count twice towards the k-core, and
    a history could end in its own target.
    """
    first: dict[tuple[str, str, int | float], Interaction] = {}
    total = 0
    for event in interactions:
        total += 1
        first.setdefault((event.user, event.item, event.time), event)
    return list(first.values()), total - len(first)


def choose_among_repeats(interactions: Sequence[Interaction], duplicates: str) -> tuple[list[Interaction], int]:
    """Return what `duplicates` (see DUPLICATES) leaves of each user's events with one item, and the number of repeats.

    Raises:
        ValueError: `duplicates` is something else.
    """
    if duplicates not in DUPLICATES:
        raise ValueError(f"duplicates is one of {', '.join(DUPLICATES)}, not {duplicates!r}")
    if duplicates == "keep":
        return list(interactions), len(interactions) - len({(event.user, event.item) for event in interactions})
    chosen: dict[tuple[str, str], Interaction] = {}
    for event in interactions:
        other = chosen.setdefault((event.user, event.item), event)
        if event.time < other.time if duplicates == "first" else event.time > other.time:
            chosen[event.user, event.item] = event
    # In the order of the file, which says in which order users stand.
    kept = [event for event in interactions if chosen[event.user, event.item] is event]
    return kept, len(interactions) - len(kept)


def core_filter(interactions: Sequence[Interaction], core: int) -> list[Interaction]:
    """Return what is left when users and items of fewer than `core` interactions are dropped, as often as it takes."""
    kept = list(interactions)
    while True:
        users = Counter(interaction.user for interaction in kept)
        items = Counter(interaction.item for interaction in kept)
        passing = [
            interaction for interaction in kept if users[interaction.user] >= core and items[interaction.item] >= core
        ]
        if len(passing) == len(kept):
            return kept
        kept = passing


def chronological_sequences(interactions: Sequence[Interaction]) -> tuple[dict[str, list[str]], int]:
    """Return user -> items in the order of time, and the number of interactions that share user and time with another.

    Ties are broken by a hash of user and item: raw files list ties by item key, an order that a model could learn and
    that says nothing about what was bought first. Users stand in the order of their first line.
    """
    by_user: dict[str, list[Interaction]] = {}
    for interaction in interactions:
        by_user.setdefault(interaction.user, []).append(interaction)
    times = Counter((interaction.user, interaction.time) for interaction in interactions)
    tied = sum(count for count in times.values() if count > 1)
    sequences = {
        user: [event.item for event in sorted(events, key=lambda event: (event.time, _tie_key(event)))]
        for user, events in by_user.items()
    }
    return sequences, tied


def _tie_key(interaction: Interaction) -> bytes:
    return hashlib.blake2b(f"{interaction.user} {interaction.item}".encode(), digest_size=8).digest()


def _blank_missing_values(records: list[dict[str, str]], place: str | Path) -> None:
    """Make values that only say "N/A" or the like blank, in place, and say how many there were."""
    count = 0
    for record in records:
        for name, value in record.items():
            if name != "id" and is_missing(value):
                record[name] = ""
                count += 1
    if count:
        words = ", ".join(sorted(MISSING_WORDS))
        logging.info("%s: values that only say that they are missing (%s): %d, written as blank", place, words, count)


def _check_output(output: Path) -> None:
    """Raise InputError where the folder cannot be made: reading the raw files can take minutes."""
    try:
        in_use = output.exists() and (not output.is_dir() or any(output.iterdir()))
        parent = next(path for path in output.absolute().parents if path.exists())
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"--output={output}: cannot be made ({reason}); choose another folder") from error
    if in_use:
        raise InputError(f"--output={output}: exists and is not empty; remove it or choose another folder")
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise InputError(f"--output={output}: cannot be written; {parent} is no folder with write permission")


def _write_folder(output: Path, records: list[str], lines: list[str], preparation: Preparation) -> None:
    """Fill a temporary folder beside `output` and move it into its place, where nothing or an empty folder is."""
    _check_output(output)
    with atomic_folder(output) as temporary:
        for name, rows in ((ITEMS_FILE, records), (SEQUENCES_FILE, lines)):
            with atomic_writer(temporary / name) as file:
                file.writelines(row + "\n" for row in rows)
        write_json(temporary / SUMMARY_FILE, asdict(preparation))
