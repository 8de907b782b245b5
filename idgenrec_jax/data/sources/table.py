"""Any file with a column of users and one of items, by the names of its columns; and a guess what these could be."""

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from idgenrec_jax.data.lines import shown
from idgenrec_jax.data.sources.rows import Form
from idgenrec_jax.data.sources.sniffing import RawFile, sniff
from idgenrec_jax.data.sources.source import NO_ITEMS, Items, RawData
from idgenrec_jax.data.sources.tables import InteractionColumns, interactions_of, items_of, text
from idgenrec_jax.errors import InputError

# Tried in order: the first pattern that a column's name fits gives the column.
_GUESSES = {
    "user_column": (r"^(user|customer|member|reviewer|visitor|session|account)(_?(id|name|key|no))?$", r"user"),
    "item_column": (
        r"^(item|product|article|movie|book|song|track|business|game|news)(_?(id|key|no|code))?$",
        r"^(asin|sku|isbn)$",
        r"item|product",
    ),
    "time_column": (r"^(time|date|datetime|ts|timestamp|created_at|t_dat)$", r"time|date|_(dt|ts|at)$", r""),
    "rating_column": (r"^(rating|stars|score|overall)$", r"rating|stars"),
}
_TIME_LIKE = re.compile(r"\d{4}-\d\d-\d\d.*|\d{9,16}")
_TIME_FORMATS = (
    "%m/%d/%Y %I:%M:%S %p", "%m/%d/%Y %H:%M:%S", "%m/%d/%Y %H:%M", "%m/%d/%Y", "%d/%m/%Y %H:%M:%S", "%d/%m/%Y %H:%M",
    "%d/%m/%Y", "%d.%m.%Y %H:%M:%S", "%d.%m.%Y %H:%M", "%d.%m.%Y", "%Y/%m/%d %H:%M:%S", "%Y/%m/%d", "%Y%m%d",
)  # fmt: skip
_TITLE = r"title|name"
_TEXTS = r"title|name|brand|author|categor|genre|description|text|summary|tags"


@dataclass(frozen=True)
class TableFlags:
    """What a person says of a table; blank is not said. Columns of a file without a header are numbers from 1."""

    user_column: str = ""
    item_column: str = ""
    time_column: str = ""
    time_unit: str = "s"
    rating_column: str = ""
    items: str = ""
    item_key: str = ""
    text_columns: tuple[str, ...] = ()
    separator: str = ""
    header: bool = True
    quoted: bool | None = None


def open_table(files: Sequence[RawFile], flags: TableFlags) -> RawData:
    """Open a table of interactions and, where `items` names it, one of items.

    Without `time_column` the order of the file is that of time. Without `items` the texts stand beside the interactions
    where `text_columns` are given.

    Raises:
        InputError: a column is not named or not there, or the files are not one table.
    """
    if len(files) > 1 and flags.items:
        files = [file for file in files if file.path.absolute() != Path(flags.items).absolute()]
    if len(files) != 1:
        names = ", ".join(file.path.name for file in files)
        raise InputError(f"--input: found {len(files)} files ({names}), expected the one table of interactions")
    (log,) = files
    for name in ("user_column", "item_column"):
        if not getattr(flags, name):
            raise InputError(f"--{name}: missing; {log.describe()}; a guess: {guess(files)}")
    form = _form(log, flags)
    columns = InteractionColumns(
        flags.user_column,
        flags.item_column,
        flags.time_column or None,
        flags.time_unit,
        flags.rating_column or None,
    )
    for flag in ("user_column", "item_column", "time_column", "rating_column"):
        _check(log, form, flag, getattr(flags, flag))
    items, described = _items(log, form, flags)
    return RawData(
        interactions_of([log.path], form, columns),
        items,
        log.describe(),
        list(dict.fromkeys([log.path, *described])),
        has_times=bool(flags.time_column),
    )


def _items(log: RawFile, form: Form, flags: TableFlags) -> tuple[Items, list[Path]]:
    if not flags.items and not flags.text_columns:
        return NO_ITEMS, []
    file, key = (sniff(Path(flags.items)), flags.item_key) if flags.items else (log, flags.item_column)
    form = _form(file, flags) if flags.items else form
    if not key:
        raise InputError(f"--item_key: missing; name the column with the items' keys: {file.describe()}")
    _check(file, form, "item_key", key)
    # NAME=COLUMN gives a column the name of a field.
    named = [column.partition("=") for column in flags.text_columns]
    texts = {name: column or name for name, _, column in named}
    if not texts:
        texts = {name: name for name in _names(file, form) if name != key and _reads_like_text(file, form, name)}
    for column in texts.values():
        _check(file, form, "text_columns", column)
    return items_of(file.path, form, key, {name: text(column) for name, column in texts.items()}), [file.path]


def _form(file: RawFile, flags: TableFlags) -> Form:
    if file.kind in ("json", "parquet"):
        return Form(file.kind)
    separator = {"\\t": "\t", "tab": "\t", "blank": " "}.get(flags.separator, flags.separator) or file.separator
    if file.kind == "document":
        raise InputError(f"{file.path}: one JSON document over many lines, expected an object a line; write it so")
    if not separator:
        raise InputError(
            f"{file.path}: not recognised as a table ({file.describe()}); name what separates its columns: --separator"
        )
    quoted = flags.quoted if flags.quoted is not None else separator in ",;"
    if flags.header:
        return Form("csv", None, separator, quoted)
    first = file.rows[0] if file.separator == separator and file.rows else ()
    width = len(first)
    if not width:
        raise InputError(f"{file.path}: --noheader needs a file whose lines {separator!r} separates; check --separator")
    return Form("csv", tuple(map(str, range(1, width + 1))), separator, quoted)


def _names(file: RawFile, form: Form) -> tuple[str, ...]:
    return form.columns if form.columns is not None else file.fields


def _check(file: RawFile, form: Form, flag: str, column: str) -> None:
    """Objects may lack a field in the first lines; the columns of tables are known."""
    if column and form.kind != "json" and file.separator == form.separator and column not in _names(file, form):
        names = ", ".join(map(shown, _names(file, form)[:20]))
        raise InputError(f"--{flag}={column}: {file.path} has no such column; its columns are {names}")


def _reads_like_text(file: RawFile, form: Form, name: str) -> bool:
    values = _values(replace(file, fields=_names(file, form)), name)
    return not values or not all(is_number(value) or value.startswith(("http://", "https://")) for value in values)


def guess(files: Sequence[RawFile]) -> str:
    """Return the flags of --source=table that could fit, from the names and values of columns."""
    tables = [file for file in files if file.kind in ("json", "csv", "parquet")]
    flags, log = {}, None
    for file in tables:
        found = _guess_columns(file) or _guess_places(file)
        if "user_column" in found and "item_column" in found:
            flags, log = found, file
            break
    if log is None:
        return (
            "--source=table --input=FILE --user_column=COLUMN --item_column=COLUMN --time_column=COLUMN --time_unit=s "
            "--items=FILE --item_key=COLUMN --text_columns=COLUMN,COLUMN"
        )
    words = ["--source=table", f"--input={log.path}", *(f"--{flag}={column}" for flag, column in flags.items())]
    if flags["user_column"].isdigit():
        words.append("--noheader")
    for file in tables:
        if file is log:
            continue
        patterns = (f"^{re.escape(flags['item_column'])}$", *_GUESSES["item_column"], "^id$")
        key = next(filter(None, (_first_match(file.fields, pattern) for pattern in patterns)), "")
        texts = [name for name in file.fields if re.search(_TEXTS, name, re.IGNORECASE) and name != key]
        if key and texts:
            title = _first_match(texts, "^title$") or _first_match(texts, _TITLE)
            named = [f"title={name}" if name == title != "title" else name for name in texts[:5]]
            words += [f"--items={file.path}", f"--item_key={key}", f"--text_columns={','.join(named)}"]
            break
    if any(file.encoding == "latin-1" for file in tables):
        words.append("--encoding=latin-1")
    return shlex.join(words)


def _guess_columns(file: RawFile) -> dict[str, str]:
    found: dict[str, str] = {}
    for flag, patterns in _GUESSES.items():
        free = [name for name in file.fields if name not in found.values()]
        if flag == "time_column":
            free = [name for name in free if _holds_times(_values(file, name))]
        column = next(filter(None, (_first_match(free, pattern) for pattern in patterns)), "")
        if column:
            found[flag] = column
    if "time_column" in found:
        found["time_unit"] = guess_unit(_values(file, found["time_column"]))
    return _in_order(found) if "user_column" in found and "item_column" in found else {}


def _guess_places(file: RawFile) -> dict[str, str]:
    """The columns of a table without a header, by number: users and items are the first two that are nothing else.

    Times look like times, ratings are numbers of at most ten, and other numbers with a point are neither.
    """
    if file.kind != "csv" or file.width < 2:
        return {}
    found: dict[str, str] = {}
    for place in range(file.width):
        values = [row[place].strip() for row in file.rows]
        if "time_column" not in found and _holds_times(values):
            found |= {"time_column": str(place + 1), "time_unit": guess_unit(values)}
        elif "item_column" in found and all(is_number(value) and abs(float(value)) <= 10 for value in values):
            found.setdefault("rating_column", str(place + 1))
        elif all(map(is_number, values)) and any("." in value for value in values):
            continue
        else:
            found.setdefault("item_column" if "user_column" in found else "user_column", str(place + 1))
    return _in_order(found)


def _holds_times(values: Sequence[str]) -> bool:
    if not values:
        return False
    return all(map(_TIME_LIKE.fullmatch, values)) or any(
        all(_fits(value, form) for value in values) for form in _TIME_FORMATS
    )


def _in_order(found: Mapping[str, str]) -> dict[str, str]:
    order = ("user_column", "item_column", "time_column", "time_unit", "rating_column")
    return {flag: found[flag] for flag in order if flag in found}


def _first_match(names: Sequence[str], pattern: str) -> str:
    return next((name for name in names if re.search(pattern, name, re.IGNORECASE)), "")


def _values(file: RawFile, name: str) -> list[str]:
    if file.records:
        return [str(record[name]) for record in file.records if record.get(name) is not None]
    if name not in file.fields:
        return []
    place = file.fields.index(name)
    return [row[place].strip() for row in file.rows[1:] if len(row) == len(file.fields)]


def guess_unit(values: Sequence[str]) -> str:
    """Return the unit of times by their size: seconds since 1970 have ten digits today."""
    numbers = [float(value) for value in values if is_number(value)]
    if not values or len(numbers) < len(values):
        return next((form for form in _TIME_FORMATS if values and all(_fits(value, form) for value in values)), "iso")
    largest = max(numbers)
    return "s" if largest < 1e11 else "ms" if largest < 1e14 else "us"


def _fits(value: str, form: str) -> bool:
    """Whether a text is a date of a form; "2268318" is no day of the year 2268."""
    try:
        year = datetime.strptime(value, form).year
    except ValueError:
        return False
    return 1970 <= year < 2100 and (form != "%Y%m%d" or len(value) == 8)


def is_number(value: str) -> bool:
    """Tell whether a cell is a number."""
    return bool(re.fullmatch(r"[-+]?\d+(\.\d*)?([eE][-+]?\d+)?", value))
