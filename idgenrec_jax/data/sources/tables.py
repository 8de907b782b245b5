"""Interactions and texts of items out of files of records, given the names of their columns."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from idgenrec_jax.data.lines import named
from idgenrec_jax.data.sources.rows import Form, Reading, Rows
from idgenrec_jax.data.sources.sniffing import RawFile
from idgenrec_jax.data.sources.source import NO_ITEMS, Interaction, Items, RawData
from idgenrec_jax.data.sources.texts import joined, listed
from idgenrec_jax.data.sources.values import RowFault, key_of, rating_of, time_reader
from idgenrec_jax.errors import InputError


@dataclass(frozen=True)
class Field:
    """A field of an item's text: the columns it is made from, and what makes a text of their values.

    Fields with `default=False`, such as prices, are written only where they are asked for.
    """

    columns: tuple[str, ...]
    make: Callable[..., str]
    default: bool = True


def text(column: str, *, default: bool = True) -> Field:
    """Return a field that holds the text of a column; lists are read as sentences one after another."""
    return Field((column,), joined, default)


def enumeration(column: str, separator: str = "", *, none: Collection[str] = (), default: bool = True) -> Field:
    """Return a field that enumerates what a column lists, in a list or as a text split at `separator`.

    A column whose text is in `none` says that there is nothing to list.
    """

    def make(value: Any) -> str:
        if isinstance(value, str) and value in none:
            return ""
        return listed(value.split(separator) if separator and isinstance(value, str) else value)

    return Field((column,), make, default)


@dataclass(frozen=True)
class InteractionColumns:
    """Which columns hold an interaction; without `time` the order of the file is that of time."""

    user: str
    item: str
    time: str | None = None
    time_unit: str = "s"
    rating: str | None = None


def interactions_of(
    files: Sequence[Path], form: Form, columns: InteractionColumns
) -> Callable[[Reading], Iterator[Interaction]]:
    """Return what reads interactions from files of one form; the place of a file in `files` is the part of its events.

    Where there are no times, the time of an event is its number. The reader raises InputError where ratings are needed
    and no column holds them.
    """

    def read(reading: Reading) -> Iterator[Interaction]:
        if reading.needs_rating and columns.rating is None:
            raise InputError(f"--min_rating: needs ratings, and {files[0]} holds none; leave it out")
        wanted = [columns.user, columns.item]
        wanted += [name for name in (columns.time, columns.rating) if name is not None]
        time_of = time_reader(columns.time_unit, columns.time or "time")
        user_name, item_name, rating_name = columns.user, columns.item, columns.rating
        order = part = 0

        def parse(user: Any, item: Any, *others: Any) -> Interaction:
            nonlocal order
            order += 1
            user, item = key_of(user, user_name), key_of(item, item_name)
            time = float(order) if columns.time is None else time_of(others[0])
            rating = None if rating_name is None else rating_of(others[-1], rating_name)
            if rating is None:
                check_unrated(reading)
            return Interaction(user, item, time, rating, part)

        for part, path in enumerate(files):  # noqa: B007, `parse` puts it into events
            yield from Rows(path, form, wanted, reading).parsed(parse)

    return read


def check_unrated(reading: Reading) -> None:
    """Check that no rating is needed, for a record without one.

    Raises:
        RowFault: one is needed.
    """
    if reading.needs_rating:
        raise RowFault("has no rating, and --min_rating needs one")


def sequences_of(
    path: Path, form: Form, columns: tuple[str, str], listed: Callable[[Any], Sequence[Any]]
) -> Callable[[Reading], Iterator[Interaction]]:
    """Return what reads interactions from records that each hold all items of a user, oldest first.

    `columns` are those of the user and the items, `listed` gives the keys in the latter. The time of an event is its
    number.
    """
    user_name, items_name = columns

    def read(reading: Reading) -> Iterator[Interaction]:
        seen: set[str] = set()
        order = 0

        def parse(user: Any, items: Any) -> tuple[str, list[str]]:
            check_unrated(reading)
            user = key_of(user, user_name)
            if user in seen:
                raise RowFault(f"{user_name} {named(user)} has a sequence above, expected one")
            keys = [key_of(item, f"an item of {user_name} {named(user)}") for item in listed(items)]
            if not keys:
                raise RowFault(f"{user_name} {named(user)} has no items, expected at least one")
            seen.add(user)
            return user, keys

        for user, keys in Rows(path, form, columns, reading).parsed(parse):
            for key in keys:
                order += 1
                yield Interaction(user, key, order)

    return read


def items_of(path: Path, form: Form, key: str, fields: Mapping[str, Field]) -> Items:
    """Return the items of a file of records with their texts: field name -> text, blank ones left out."""

    def read(reading: Reading, wanted: Set[str], names: Collection[str]) -> Iterator[tuple[str, Mapping[str, str]]]:
        chosen = {name: fields[name] for name in names}
        columns = [column for field in chosen.values() for column in field.columns]

        def parse(item: Any, *values: Any) -> tuple[str, Mapping[str, str]] | None:
            item = key_of(item, key)
            if item not in wanted:
                return None
            texts, place = {}, 0
            for name, field in chosen.items():
                width = len(field.columns)
                texts[name] = field.make(*values[place : place + width])
                place += width
            return item, {name: text for name, text in texts.items() if text}

        for found in Rows(path, form, [key, *columns], reading).parsed(parse):
            if found is not None:
                yield found

    return Items({name: field.default for name, field in fields.items()}, read)


def open_log(
    files: Sequence[RawFile],
    form: Form,
    columns: InteractionColumns,
    fields: Mapping[str, Field],
    notes: Sequence[str] = (),
) -> RawData | None:
    """Open the file that has all these columns and, where it is there, the one that describes the items.

    That one has no users. It has the items' keys under the same name, and a column of the field "title". None is
    returned where no file has the columns.

    Raises:
        InputError: several files fit.
    """
    named = [name for name in (columns.user, columns.item, columns.time, columns.rating) if name is not None]
    titles = fields["title"].columns
    alike = [file for file in files if file.kind == form.kind and file.separator in ("", form.separator)]
    log = only([file for file in alike if file.has(*named)], "interactions")
    if log is None:
        return None
    described = only(
        [
            file
            for file in alike
            if file.has(columns.item) and not file.has(columns.user) and any(map(file.has, titles))
        ],
        "texts of items",
    )
    return RawData(
        interactions_of([log.path], form, columns),
        items_of(described.path, form, columns.item, fields) if described else NO_ITEMS,
        f"{log.path.name} has {', '.join(named)}",
        [file.path for file in (log, described) if file],
        has_times=columns.time is not None,
        notes=notes,
    )


def only(files: Sequence[RawFile], what: str) -> RawFile | None:
    """Return the one file of its kind, or None where there is none.

    Raises:
        InputError: there are several, and nobody can tell which is meant.
    """
    if len(files) > 1:
        names = " and ".join(str(file.path) for file in files[:3])
        raise InputError(f"--input: {names} hold {what}; name the files to read, with commas between")
    return files[0] if files else None


def chained(*parts: Items) -> Items:
    """Return the items of several files: what one says of an item and another as well is that of the first."""
    fields = {name: default for part in reversed(parts) for name, default in part.fields.items()}

    def read(reading: Reading, wanted: Set[str], names: Collection[str]) -> Iterator[tuple[str, Mapping[str, str]]]:
        for part in parts:
            yield from part.read(reading, wanted, [name for name in names if name in part.fields])

    return Items(fields, read)
