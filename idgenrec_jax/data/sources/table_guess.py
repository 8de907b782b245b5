"""Which columns of an unknown table could be its users, items and times, as flags that a person can paste and mend."""

import csv
import io
import re
import shlex
from collections.abc import Sequence
from datetime import datetime

from idgenrec_jax.data.sources.sniffing import RawFile

_KEY = r"[_ -]?(id|key|no|number|code)?$"
# For each flag the patterns of names, the surest first.
_NAMES = {
    "user_column": (
        r"^(user|customer|member|reviewer|visitor|client|household|player|account|session|u)" + _KEY,
        r"^(user|customer|member|reviewer|player)[_ -]?name$",
        r"user|customer|reviewer|visitor",
    ),
    "item_column": (
        r"^(item|product|article|movie|film|book|song|track|artist|business|game|app|news|recipe|anime|beer|restaurant|"
        r"venue|place|poi|hotel|video|course|job|stock|i)" + _KEY,
        r"^(parent_)?asin$|^(sku|isbn|ean|gtin)$",
        r"item|product",
        r"^(?!review|order|transaction|invoice|event|session).+([_ -]id|(?-i:Id|ID))$",
    ),
    "time_column": (
        r"^(time|date|datetime|ts|timestamp|created_at|t_dat|event_time|unix_?time)$",
        r"time|date|_(dt|ts|at)$",
        r"",
    ),
    "rating_column": (r"^(rating|stars|score|overall)$", r"rating|stars"),
}
_TEXTS = r"title|name|brand|author|categor|genre|description|text|summary|tags"
_TEXTS_BESIDE = r"title|brand|categor|genre|description|(product|item|article|movie|book)[_ -]?name"
_NO_TEXTS_BESIDE = r"review|user|customer|history"
_MOST_TEXTS = 5

_DATE_FORMATS = (
    "%Y-%m-%d %H:%M:%S UTC", "%m/%d/%Y %H:%M:%S", "%m/%d/%Y %H:%M", "%d/%m/%Y %H:%M:%S", "%d/%m/%Y %H:%M",
    "%m/%d/%Y %I:%M:%S %p", "%m/%d/%Y", "%d/%m/%Y", "%m/%d/%y %H:%M", "%d.%m.%Y", "%d.%m.%Y %H:%M:%S", "%Y/%m/%d",
    "%Y/%m/%d %H:%M:%S", "%b %d, %Y", "%B %d, %Y", "%a %b %d %H:%M:%S %z %Y",
)  # fmt: skip
# Seconds since 1970 have nine digits since 1973.
_EARLIEST, _MILLISECONDS, _MICROSECONDS = 1e8, 1e11, 1e14
_TEMPLATE = (
    "--source=table --input=FILE --user_column=COLUMN --item_column=COLUMN --time_column=COLUMN --time_unit=s "
    "--items=FILE --item_key=COLUMN --text_columns=COLUMN,COLUMN"
)


def guess(files: Sequence[RawFile]) -> str:
    """Return the flags of --source=table that could fit, from the names and values of columns, ready for a shell."""
    tables = [file for file in files if file.kind in ("json", "csv", "parquet")]
    for look in (_by_names, _by_values):
        found = [(file, flags) for file in tables if (flags := look(file))]
        if found:
            # Interactions have times, and what counts them has none.
            file, flags = max(found, key=lambda one: any(flag.startswith("--time_column") for flag in one[1]))
            flags += _items_of(file, [other for other in tables if other is not file], flags)
            if any(table.encoding == "latin-1" for table in tables):
                flags.append("--encoding=latin-1")
            return shlex.join(["--source=table", f"--input={_listed([str(file.path)])}", *flags])
    return _TEMPLATE


def values_of(file: RawFile, names: Sequence[str], name: str) -> list[str]:
    """Return the first values of a column as text, without missing ones; `names` are those of all columns."""
    if file.kind != "csv":
        return [str(record[name]) for record in file.records if record.get(name) is not None]
    if name not in names:
        return []
    place = names.index(name)
    rows = [row for row in file.rows if len(row) == len(names) and tuple(map(str.strip, row)) != tuple(names)]
    return [row[place].strip() for row in rows if row[place].strip()]


def is_number(value: str) -> bool:
    """Tell whether a text is a number."""
    return bool(re.fullmatch(r"[-+]?\d+(\.\d*)?([eE][-+]?\d+)?", value))


def _by_names(file: RawFile) -> list[str]:
    """The flags for a table whose columns have telling names; none where its users or items have not."""
    found: dict[str, str] = {}
    for flag in ("user_column", "item_column", "rating_column"):
        free = [name for name in file.fields if name not in found.values()]
        if column := _first(free, _NAMES[flag]):
            found[flag] = column
    if "user_column" not in found or "item_column" not in found:
        return []
    for pattern in _NAMES["time_column"]:
        earliest = 0.0 if pattern.startswith("^") else _EARLIEST
        for name in file.fields:
            unit = unit_of(values_of(file, file.fields, name), earliest)
            # Numbers under any other name can be anything.
            if not pattern and unit in ("s", "ms", "us", "%Y%m%d"):
                continue
            if unit and name not in found.values() and re.search(pattern, name, re.IGNORECASE):
                found.setdefault("time_column", name)
                found.setdefault("time_unit", unit)
    return [f"--{flag}={column}" for flag, column in found.items()]


def _by_values(file: RawFile) -> list[str]:
    """The flags for a table without a header, whose first line is data: two columns of keys, and perhaps times."""
    first = file.rows[0] if file.kind == "csv" else ()
    if not any(is_number(cell.strip()) or unit_of([cell.strip()], _EARLIEST) for cell in first):
        return []
    names = [str(place) for place in range(1, file.width + 1)]
    values = {name: values_of(file, names, name) for name in names}
    units = {name: unit_of(values[name], _EARLIEST) for name in names}
    # Dates are surer than numbers that could be times; of those the last: keys come first.
    times = [name for name in names if units[name]]
    times.sort(key=lambda name: (units[name] in ("s", "ms", "us"), -int(name)))
    decimals = [name for name in names if all(is_number(value) and "." in value for value in values[name])]
    keys = [name for name in names if name not in times[:1] and name not in decimals]
    if len(keys) < 2:
        return []
    flags = ["--noheader", f"--user_column={keys[0]}", f"--item_column={keys[1]}"]
    if times:
        flags += [f"--time_column={times[0]}", f"--time_unit={units[times[0]]}"]
    return flags


def _items_of(log: RawFile, others: Sequence[RawFile], flags: Sequence[str]) -> list[str]:
    """The flags for the texts of items, in another file or beside the interactions."""
    if "--noheader" in flags:
        return []
    item = next(flag.partition("=")[2] for flag in flags if flag.startswith("--item_column="))
    for file in others:
        key = _first(file.fields, (f"^{re.escape(item)}$", *_NAMES["item_column"][:2], "^id$"))
        texts = [name for name in file.fields if re.search(_TEXTS, name, re.IGNORECASE) and name != key]
        if key and texts:
            return [f"--items={file.path}", f"--item_key={key}", f"--text_columns={_fields(texts[:_MOST_TEXTS])}"]
    used = {flag.partition("=")[2] for flag in flags}
    beside = [
        name
        for name in log.fields
        if re.search(_TEXTS_BESIDE, name, re.IGNORECASE)
        and not re.search(_NO_TEXTS_BESIDE, name, re.IGNORECASE)
        and name not in used
    ]
    return [f"--text_columns={_fields(beside[:_MOST_TEXTS])}"] if beside else []


def _fields(columns: Sequence[str]) -> str:
    """The value of --text_columns, in which one column is called the title."""
    title = _first(columns, ("^title$", r"title|name"))
    return _listed([f"title={name}" if name == title and name != "title" else name for name in columns])


def _first(names: Sequence[str], patterns: Sequence[str]) -> str:
    found = (name for pattern in patterns for name in names if re.search(pattern, name, re.IGNORECASE))
    return next(found, "")


def _listed(values: Sequence[str]) -> str:
    """The value of a flag that is a list: what holds a comma is quoted."""
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(values)
    return line.getvalue()


def unit_of(values: Sequence[str], earliest: float) -> str:
    """Return the --time_unit that reads all values as moments, numbers from `earliest` on; blank where none does."""
    if not values:
        return ""
    if all(re.fullmatch(r"(19|20)\d\d(0[1-9]|1[0-2])[0-3]\d", value) for value in values):
        return "%Y%m%d"
    if all(map(is_number, values)):
        numbers = list(map(float, values))
        if min(numbers) < earliest or max(numbers) >= _MICROSECONDS * 1000:
            return ""
        return "s" if max(numbers) < _MILLISECONDS else "ms" if max(numbers) < _MICROSECONDS else "us"
    if all(_is_iso(value) for value in values):
        return "iso"
    return next((form for form in _DATE_FORMATS if all(_fits(value, form) for value in values)), "")


def _is_iso(value: str) -> bool:
    try:
        datetime.fromisoformat(value)
    except ValueError:
        return False
    return True


def _fits(value: str, form: str) -> bool:
    try:
        datetime.strptime(value, form)
    except ValueError:
        return False
    return True
