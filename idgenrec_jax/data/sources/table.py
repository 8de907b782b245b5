"""Any file with a column of users and one of items, by the names of its columns."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from idgenrec_jax.data.lines import shown
from idgenrec_jax.data.sources.rows import Form
from idgenrec_jax.data.sources.sniffing import RawFile, sniff
from idgenrec_jax.data.sources.source import NO_ITEMS, Items, RawData
from idgenrec_jax.data.sources.table_guess import guess, is_number, values_of
from idgenrec_jax.data.sources.tables import InteractionColumns, interactions_of, items_of, text
from idgenrec_jax.errors import InputError


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


def open_table(files: Sequence[RawFile], flags: TableFlags, encoding: str = "") -> RawData:
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
        raise InputError(
            f"--input: found {len(files)} files ({names}), expected the one table of interactions; name it, and that "
            f"of items as --items; a guess: {guess(files)}"
        )
    log = _seen(files[0], flags, encoding)
    for name in ("user_column", "item_column"):
        if not getattr(flags, name):
            raise InputError(f"--{name}: missing; {log.describe()}; a guess: {guess([log])}")
    form = _form(log, flags)
    columns = InteractionColumns(
        flags.user_column,
        flags.item_column,
        flags.time_column or None,
        flags.time_unit,
        flags.rating_column or None,
    )
    notes: list[str] = []
    for flag in ("user_column", "item_column", "time_column", "rating_column"):
        _check(log, form, flag, getattr(flags, flag), notes)
    items, described = _items(log, form, flags, encoding, notes)
    return RawData(
        interactions_of([log.path], form, columns),
        items,
        log.describe(),
        list(dict.fromkeys([log.path, *described])),
        has_times=bool(flags.time_column),
        notes=notes,
    )


def _items(log: RawFile, form: Form, flags: TableFlags, encoding: str, notes: list[str]) -> tuple[Items, list[Path]]:
    if not flags.items and not flags.text_columns:
        return NO_ITEMS, []
    file, key = log, flags.item_column
    if flags.items:
        file, key = _seen(sniff(Path(flags.items), encoding), flags, encoding), flags.item_key
        form = _form(file, flags)
        if not key:
            raise InputError(f"--item_key: missing; name the column with the items' keys: {file.describe()}")
        _check(file, form, "item_key", key, notes)
    # NAME=COLUMN gives a column the name of a field.
    named = [column.partition("=") for column in flags.text_columns]
    texts = {name: column or name for name, _, column in named}
    if len(texts) < len(named) or not all(texts) or "id" in texts:
        raise InputError(
            f"--text_columns={','.join(flags.text_columns)}: expected different names, none of them blank or id, which "
            "is the item's key; give a column another name by NAME=COLUMN"
        )
    if not texts:
        names = [name for name in _names(file, form) if name not in (key, "id")]
        texts = {name: name for name in names if _reads_like_text(file, form, name)}
    for column in texts.values():
        _check(file, form, "text_columns", column, notes)
    return items_of(file.path, form, key, {name: text(column) for name, column in texts.items()}), [file.path]


def _seen(file: RawFile, flags: TableFlags, encoding: str) -> RawFile:
    """The file split at the separator that a person has named; files that have none stay as they are."""
    separator = {"\\t": "\t", "tab": "\t", "blank": " "}.get(flags.separator, flags.separator)
    if not separator or file.kind in ("json", "parquet", "empty", "binary"):
        return file
    file = sniff(file.path, encoding, separator)
    if not file.separator:
        raise InputError(f"--separator={flags.separator}: does not separate the lines of {file.describe()}")
    return file


def _form(file: RawFile, flags: TableFlags) -> Form:
    if file.kind in ("json", "parquet"):
        return Form(file.kind)
    if file.kind == "document":
        raise InputError(f"{file.path}: one JSON document over many lines, expected an object a line; write it so")
    if file.kind != "csv":
        raise InputError(
            f"{file.path}: not recognised as a table ({file.describe()}); name what separates its columns: --separator"
        )
    quoted = flags.quoted if flags.quoted is not None else file.separator in ",;"
    columns = None if flags.header else tuple(map(str, range(1, file.width + 1)))
    return Form("csv", columns, file.separator, quoted)


def _names(file: RawFile, form: Form) -> tuple[str, ...]:
    return form.columns if form.columns is not None else file.fields


def _check(file: RawFile, form: Form, flag: str, column: str, notes: list[str]) -> None:
    """Check that a column is there. What not every object has can be missing from the first ones, which is a note."""
    if not column or column in _names(file, form):
        return
    names = ", ".join(map(shown, _names(file, form)[:20]))
    if form.kind == "json" and flag in ("rating_column", "text_columns"):
        notes.append(f"--{flag}={column}: the first records of {file.path} lack it; they have {names}")
        return
    raise InputError(f"--{flag}={column}: {file.path} has no such column; its columns are {names}")


def _reads_like_text(file: RawFile, form: Form, name: str) -> bool:
    values = values_of(file, _names(file, form), name)
    return not values or not all(is_number(value) or value.startswith(("http://", "https://")) for value in values)
