"""RecBole's atomic files: tables whose header names the type of each column, split by the publisher or not."""

from collections.abc import Callable, Sequence
from typing import Any

from idgenrec_jax.data.sources.histories import interactions_of_histories
from idgenrec_jax.data.sources.rows import Form
from idgenrec_jax.data.sources.sniffing import RawFile
from idgenrec_jax.data.sources.source import NO_ITEMS, Items, RawData, Source
from idgenrec_jax.data.sources.table_guess import is_number, unit_of
from idgenrec_jax.data.sources.tables import Field, InteractionColumns, interactions_of, items_of, text
from idgenrec_jax.data.sources.texts import listed

# Quotes are letters like any other here.
_FORM = Form("csv", None, "\t", quoted=False)
_TYPES = ("token", "token_seq", "float", "float_seq")
_USERS = ("user_id", "session_id")
_SPLITS = (".train.inter", ".valid.inter", ".test.inter")
_UNITS = {"s": "seconds", "ms": "milliseconds", "us": "microseconds"}
_TITLES = ("title", "name", "movie_title", "item_title", "product_title", "news_title", "item_name", "product_name")
_CATEGORIES = ("categories", "category", "genre", "genres", "class")


def recognise(files: Sequence[RawFile]) -> RawData | None:
    """Open the interactions of a data set in atomic files, in one file or split in three, and its items."""
    files = [file for file in files if _is_atomic(file)]
    logs = [file for file in files if _column(file, "item_id") and any(_column(file, user) for user in _USERS)]
    items = [file for file in files if file not in logs and file.fields[0].startswith("item_id:")]
    split = [file for ending in _SPLITS for file in logs if file.name.endswith(ending)]
    whole = [file for file in logs if file not in split]
    if len(items) > 1 or len(split) not in (0, len(_SPLITS)) or (not split and len(whole) != 1):
        return None
    notes = [f"{file.path.name} was not read: the split in three was" for file in whole] if split else []
    logs = split or whole
    described, texts = (items[0].path,) if items else (), _items(items[0]) if items else NO_ITEMS
    paths = [file.path for file in logs]
    if any(file.fields != logs[0].fields for file in logs):
        return None
    reason = f"{logs[0].path.name} has the header {', '.join(logs[0].fields)}"
    user = next(filter(None, (_column(logs[0], name) for name in _USERS)))
    item, history = _column(logs[0], "item_id"), _column(logs[0], "item_id_list")
    if history:
        columns = user, history, item
        return RawData(
            interactions_of_histories(paths, _FORM, columns, str.split),
            texts,
            f"{reason}; sequences are put together from histories and targets",
            [*paths, *described],
            has_times=False,
            has_split=bool(split),
            notes=notes,
        )
    time, rating = _column(logs[0], "timestamp"), _column(logs[0], "rating")
    unit = "s"
    if time:
        unit = unit_of([value for file in logs for value in _values(file, time)], 0.0) or unit
        reason += f"; its times are {_UNITS.get(unit, unit)} by their size"
    return RawData(
        interactions_of(paths, _FORM, InteractionColumns(user, item, time or None, unit, rating or None)),
        texts,
        reason,
        [*paths, *described],
        has_times=bool(time),
        has_split=bool(split),
        notes=notes,
    )


def _is_atomic(file: RawFile) -> bool:
    return file.separator == "\t" and all(name.rpartition(":")[2] in _TYPES for name in file.fields)


def _column(file: RawFile, name: str) -> str:
    """A column with its type, or "" where there is none of this name."""
    return next((column for column in file.fields if column.rpartition(":")[0] == name), "")


def _values(file: RawFile, column: str) -> list[str]:
    place = file.fields.index(column)
    return [row[place].strip() for row in file.rows[1:] if len(row) == len(file.fields) and row[place].strip()]


def _items(file: RawFile) -> Items:
    """All columns but the key; those of numbers and addresses only where they are asked for."""
    fields: dict[str, Field] = {}
    for column in file.fields[1:]:
        name, _, kind = column.rpartition(":")
        field = "title" if name in _TITLES else "categories" if name in _CATEGORIES else name
        values = _values(file, column)
        numeric = bool(values) and all(map(is_number, values))
        reads = kind.startswith("token") and not numeric and not all(map(_is_address, values))
        make: Callable[[Any], str] = _enumerated if field == "categories" and kind == "token_seq" else listed
        made = Field((column,), make, reads) if field == "categories" else text(column, default=reads)
        fields[name if field in fields else field] = made
    return items_of(file.path, _FORM, file.fields[0], fields)


def _is_address(value: str) -> bool:
    return value.startswith(("http://", "https://"))


def _enumerated(value: str) -> str:
    """What a token_seq lists: parts with commas between, perhaps quoted as Python has them, or else words."""
    if "," not in value:
        return listed(value.split())
    return listed([part.strip(" []'\"") for part in value.split(",")])


SOURCE = Source(
    "RecBole's atomic files",
    "X.inter whose header has user_id:token and item_id:token (or X.train.inter, X.valid.inter and X.test.inter), "
    "and perhaps X.item",
    recognise,
    "that of the data set they were made from",
)
