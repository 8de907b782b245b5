"""From raw files of any format to a data folder: faults, filters, the order of time, the split, and the files."""

import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from jaxtyping import Int

from idgenrec_jax.data.lines import named
from idgenrec_jax.data.sources import SOURCES
from idgenrec_jax.data.sources.card import PreparationCard, Split, checksums
from idgenrec_jax.data.sources.data_folder import check_output, write_data_folder
from idgenrec_jax.data.sources.filters import (
    DUPLICATES,
    Events,
    choose_among_repeats,
    collect,
    core_filter,
    drop_exact_repeats,
    in_order_of_time,
)
from idgenrec_jax.data.sources.recognition import TABLE, recognise
from idgenrec_jax.data.sources.rows import Reading
from idgenrec_jax.data.sources.source import RawData
from idgenrec_jax.data.sources.table import TableFlags
from idgenrec_jax.data.sources.values import Faults
from idgenrec_jax.data.words import find_words, has_word, shortened
from idgenrec_jax.errors import InputError
from idgenrec_jax.files import expand_home

MISSING_TEXT = ("keep", "drop")
TITLE = "title"
CORE = 5
_MILLISECONDS_FROM = 1e11


@dataclass(frozen=True)
class Filters:
    """What stays of the raw data; each field is the flag of its name.

    `user_core`, `item_core` and `duplicates` are None where a person has not said: 5, 5 and "first", or 1, 1 and "keep"
    where the publisher has split the data and so decided.
    """

    min_rating: float = 0.0
    since: str = ""
    until: str = ""
    duplicates: str | None = None
    missing_text: str = "keep"
    min_title_words: int = 0
    user_core: int | None = None
    item_core: int | None = None
    split: str = ""
    bad_lines: str = "stop"
    text_columns: tuple[str, ...] = ()
    max_characters: int = 0
    encoding: str = ""


def prepare(
    source: str,
    inputs: Sequence[str | Path],
    output: str | Path,
    filters: Filters,
    *,
    table: TableFlags | None = None,
    command: str = "",
    downloaded: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> PreparationCard:
    """Make a data folder from raw files of the format `source` (see SOURCES; "auto" and "table", too); return its card.

    `output` is checked before anything is read, and appears whole or not at all. The card has the `command` and what
    was `downloaded`.

    Raises:
        InputError: `output` is in use or cannot be made, a raw file is missing or faulty (file, line and remedy), the
            format is unknown, or nothing is left after filtering.
    """
    output = Path(expand_home(output))
    check_output(output)
    if not math.isfinite(filters.min_rating):
        raise InputError(f"--min_rating={filters.min_rating}: expected a finite number, such as 4")
    since, until = _moment("from", filters.since, -math.inf), _moment("to", filters.until, math.inf)
    if not since < until:
        raise InputError(f"--from={filters.since} --to={filters.until}: expected two moments, the earlier one first")
    faults = Faults(skip=filters.bad_lines == "skip")
    reading = Reading(faults, filters.min_rating > 0, filters.encoding, progress)
    inputs = [expand_home(path) for path in inputs]
    source, raw = recognise(source, inputs, table or TableFlags(), filters.encoding)
    logging.info("--source=%s: %s", source, raw.reason)
    for note in raw.notes:
        logging.warning("%s", note)
    split = _split(filters.split, raw)
    if not raw.has_times and (filters.since or filters.until or split.name == "time"):
        raise InputError("--from, --to and --split=time: need times, and these files have none; leave them out")
    # Where the publisher has split, filters of ours would make another set of it.
    own = split.name != "given"
    user_core = filters.user_core if filters.user_core is not None else CORE if own else 1
    item_core = filters.item_core if filters.item_core is not None else CORE if own else 1
    duplicates = filters.duplicates or (DUPLICATES[0] if own else "keep")
    names = _text_fields(raw, filters.text_columns, renamed=source == TABLE)
    if filters.min_title_words and TITLE not in raw.items.fields:
        fields = _listing(raw.items.fields)
        raise InputError(f"--min_title_words: needs the field {TITLE}, and the items have {fields}; leave it out")

    log, counts = collect(raw.interactions(reading), filters.min_rating, since, until)
    # Interactions that each filter leaves.
    stages = {"read": counts["read"], "rated": counts["read"] - counts["low_rating"], "in time": len(log.events)}
    events, exact_repeats = drop_exact_repeats(log.events)
    stages["without exact repeats"] = len(events)
    events, repeats = choose_among_repeats(events, duplicates)
    stages["without repeats"] = len(events)
    if filters.missing_text == "drop" or filters.min_title_words:
        described = _described(raw, reading, names, set(log.item_keys), filters)
        events = events.only(np.array([key in described for key in log.item_keys], bool)[events.items])
        stages["with text"] = len(events)
    events = core_filter(events, user_core, item_core)
    stages["in the core"] = len(events)
    if not len(events):
        raise _nothing_left(stages, faults, f"--user_core={user_core} --item_core={item_core}")
    if own:
        # Under a split of ours time alone is the order.
        events = Events(events.users, events.items, events.times, np.zeros_like(events.parts))
    events, tied = in_order_of_time(events, log.user_keys, log.item_keys)
    items = sorted({log.item_keys[item] for item in np.unique(events.items).tolist()})
    texts = _read_texts(raw, reading, items, names, filters.max_characters)
    lacking = [item for item in items if not any(map(has_word, texts.get(item, {}).values()))]
    _report_lacking(raw, lacking, items)
    boundaries = _boundaries(split, events, log.user_keys)
    users = list(dict.fromkeys(events.users.tolist()))
    card = PreparationCard(
        source=source,
        reason=raw.reason,
        notes=list(raw.notes),
        command=command,
        files=checksums(raw.files),
        downloaded=dict(downloaded or {}),
        licence=SOURCES[source].licence if source in SOURCES else "see whoever made the data",
        interactions_by_filter=stages,
        exact_repeats=exact_repeats,
        repeats=repeats,
        duplicates=duplicates,
        user_core=user_core,
        item_core=item_core,
        bad_lines=faults.count,
        first_bad_lines=faults.places,
        users=len(users),
        items=len(items),
        interactions=len(events),
        tied_interactions=tied if raw.has_times else None,
        order="time" if raw.has_times else "the order of the files, which hold no times",
        text_fields=list(names),
        items_without_text=len(lacking),
        split=split,
    )
    write_data_folder(output, card, log, events, boundaries, items, texts)
    return card


def _nothing_left(stages: Mapping[str, int], faults: Faults, core: str) -> InputError:
    """The error for filters that have left nothing: which of them, and what helps."""
    if not stages["read"]:
        found = f"{faults.count} faulty records, the first: {faults.places[0]}" if faults.count else "no records"
        return InputError(f"--input: holds no interaction that can be read, but {found}; check the files and the flags")
    left = ", ".join(f"{name} {count}" for name, count in stages.items())
    if stages["without repeats"] and stages.get("with text", 1):
        return InputError(f"{core}: none of the interactions is left ({left}); lower them")
    return InputError(f"none of the interactions is left ({left}); change the filter that has left 0")


def _listing(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"


def _text_fields(raw: RawData, asked: Sequence[str], *, renamed: bool) -> list[str]:
    """The fields of items that are written: those asked for, or those that are by default."""
    fields = raw.items.fields
    if renamed:
        # NAME=COLUMN of a table, which knows no other fields than those asked for.
        asked = [name.partition("=")[0] for name in asked]
    asked = list(dict.fromkeys(asked))
    unknown = [name for name in asked if name not in fields]
    if unknown:
        raise InputError(f"--text_columns: found {unknown[0]!r}, expected some of {_listing(fields)}")
    return asked or [name for name, default in fields.items() if default]


def _read_texts(
    raw: RawData, reading: Reading, items: Sequence[str], names: Sequence[str], max_characters: int
) -> dict[str, dict[str, str]]:
    """Item -> field -> text. An item may be described several times: a later record fills what earlier ones lack."""
    texts: dict[str, dict[str, str]] = {}
    for item, fields in raw.items.read(reading, frozenset(items), names):
        known = texts.setdefault(item, {})
        for name, text in fields.items():
            if text and name not in known:
                known[name] = shortened(text, max_characters).rstrip() if max_characters else text
    return texts


def _described(
    raw: RawData, reading: Reading, names: Sequence[str], items: set[str], filters: Filters
) -> Collection[str]:
    """The items that have a text, and a title of enough words; the texts themselves would not fit memory here."""
    with_text: set[str] = set()
    words: dict[str, int] = {}
    with_title = [*names, TITLE] if filters.min_title_words and TITLE not in names else names
    for item, fields in raw.items.read(reading, items, with_title):
        if any(has_word(fields.get(name, "")) for name in names):
            with_text.add(item)
        if title := fields.get(TITLE):
            words.setdefault(item, len(find_words(title)))
    if not filters.min_title_words:
        return with_text
    titled = {item for item, count in words.items() if count >= filters.min_title_words}
    return titled & with_text if filters.missing_text == "drop" else titled


def _report_lacking(raw: RawData, lacking: Sequence[str], items: Sequence[str]) -> None:
    if len(lacking) == len(items):
        logging.warning(
            "no item has a text, and textual IDs are made from text; name a file of items, or make IDs of numbers"
        )
    elif lacking:
        names = ", ".join(map(named, lacking[:3])) + (", ..." if len(lacking) > 3 else "")
        logging.warning("%d of %d items have no text (%s)", len(lacking), len(items), names)


def _split(asked: str, raw: RawData) -> Split:
    """The split that --split names; that of the publisher where there is one and nothing is asked for."""
    if not asked:
        asked = "given" if raw.has_split else "leave_one_out"
    if asked == "leave_one_out":
        if raw.has_times:
            return Split(asked, "leave-one-out by time: last item test, the one before validation, the rest training")
        return Split(asked, "leave-one-out by the order of the files: last item test, the one before validation")
    if asked == "given":
        if not raw.has_split:
            raise InputError("--split=given: these files hold no split of the publisher; leave it out")
        return Split(asked, "given by the publisher: files of training, validation and test")
    name, _, moments = asked.partition(":")
    first, comma, second = moments.partition(",")
    if name != "time" or not comma:
        raise InputError(f"--split={asked}: expected leave_one_out, given or time:T1,T2")
    moments_in_seconds = [_moment("split", first, math.nan), _moment("split", second, math.nan)]
    if not moments_in_seconds[0] < moments_in_seconds[1]:
        raise InputError(f"--split={asked}: expected two moments, the earlier one first")
    description = f"by time: training before {first}, validation before {second}, the rest test"
    return Split(name, description, moments_in_seconds)


def _moment(flag: str, text: str, default: float) -> float:
    """Seconds since 1970 of a date or of a number of seconds; one of twelve digits or more is in milliseconds."""
    if not text:
        return default
    text = text.strip()
    # 2018 and 20180701 are dates.
    if re.fullmatch(r"-?\d+(\.\d+)?", text) and not re.fullmatch(r"\d{4}|(19|20)\d{6}", text):
        number = float(text)
        return number if abs(number) < _MILLISECONDS_FROM else number / 1000
    try:
        moment = datetime.fromisoformat(f"{text}-01-01" if re.fullmatch(r"\d{4}", text) else text)
    except ValueError as error:
        raise InputError(f"--{flag}={text}: expected a date such as 2018-07-01, or seconds since 1970") from error
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _boundaries(split: Split, events: Events, user_keys: Sequence[str]) -> Int[np.ndarray, "users 2"] | None:
    """How many events of each user, in the order of the events, are training, and how many validation targets."""
    if split.name == "leave_one_out":
        return None
    starts = np.flatnonzero(np.diff(events.users, prepend=-1))
    parts = events.parts if split.moments is None else np.searchsorted(split.moments, events.times, side="right")
    return np.stack([np.add.reduceat(parts == part, starts) for part in (0, 1)], axis=1).astype(np.int32)
