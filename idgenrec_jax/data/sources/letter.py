"""JSON of LETTER and LC-Rec, one document each for sequences and items, and the tables of MiniOneRec."""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from idgenrec_jax.data.lines import shown
from idgenrec_jax.data.sources.histories import interactions_of_histories
from idgenrec_jax.data.sources.rows import Form, Reading, Rows, read_literal
from idgenrec_jax.data.sources.sniffing import RawFile
from idgenrec_jax.data.sources.source import NO_ITEMS, Items, RawData, Source
from idgenrec_jax.data.sources.tables import chained, enumeration, items_of, sequences_of, text
from idgenrec_jax.data.sources.texts import joined
from idgenrec_jax.data.sources.values import RowFault, key_of

_CSV = Form("csv")
_INFO = Form("csv", ("codes", "title", "item"), "\t", quoted=False)
_HISTORY = ("user_id", "history_item_id", "item_id")
_FIELDS = {
    "title": text("title"),
    "brand": text("brand"),
    "categories": enumeration("categories", ","),
    "description": text("description"),
    "features": text("features", default=False),
}
_PARTS = (r"train", r"valid|val|dev", r"test")

# What the first members of a document are; codes such as <a_1> are the IDs of LETTER.
_KEY = r'"(?:[^"\\]|\\.)*" ?: ?'
_LISTS_OF_KEYS = re.compile(rf'\{{ ?{_KEY}\[(?: ?\] ?, ?{_KEY}\[)* ?(?:\d|"[^<"])')
_OBJECTS = re.compile(rf"\{{ ?{_KEY}\{{")


def recognise(files: Sequence[RawFile]) -> RawData | None:
    """Open X.inter.json or MiniOneRec's tables of histories, and the texts that lie beside them."""
    texts = [file for file in files if file.kind == "document" and _OBJECTS.match(_start(file))]
    texts = [file for file in texts if file.name.endswith(".item.json")] if len(texts) > 1 else texts
    if len(texts) > 1:
        return None
    items = [_items_of_document(file) for file in texts]
    described = [file.path for file in texts]
    tables = [file for file in files if file.separator == "," and file.has(*_HISTORY)]
    if tables:
        return _open_tables(tables, [file for file in files if _is_info(file)], items, described)
    sequences = [file for file in files if file.kind == "document" and _LISTS_OF_KEYS.match(_start(file))]
    # Lists of numbers can be anything, such as the attributes of items: a name or the texts tell.
    named = [file for file in sequences if file.name.endswith(".inter.json")]
    sequences = named or (sequences if texts else [])
    if len(sequences) != 1:
        return None
    (log,) = sequences
    return RawData(
        sequences_of(log.path, Form("document", ("user", "items")), ("user", "items"), _list),
        items[0] if items else NO_ITEMS,
        f"{log.path.name} is one JSON object with the items of each user, as LETTER and LC-Rec have it",
        [log.path, *described],
        has_times=False,
    )


def _start(file: RawFile) -> str:
    return " ".join(word for row in file.rows for word in row)


def _list(value: Any) -> list:
    if not isinstance(value, list):
        raise RowFault(f"has {shown(value)}, expected a list of items")
    return value


def _items_of_document(file: RawFile) -> Items:
    start = _start(file)
    fields = {name: field for name, field in _FIELDS.items() if name == "title" or f'"{name}"' in start}
    return items_of(file.path, Form("document", ("item",)), "item", fields)


def _open_tables(
    tables: list[RawFile], infos: list[RawFile], items: list[Items], described: list[Path]
) -> RawData | None:
    split = len(tables) > 1
    paths = [file.path for file in tables]
    if split:
        ordered = [[path for path in paths if _is_part(path, part)] for part in _PARTS]
        if len(paths) != len(_PARTS) or any(len(part) != 1 for part in ordered):
            return None
        paths = [path for part in ordered for path in part]
    if len(infos) > 1:
        return None
    if infos:
        items = [*items, items_of(infos[0].path, _INFO, "item", {"title": text("title")})]
        described = [*described, infos[0].path]
    if all(file.has("item_title", "history_item_title") for file in tables):
        items = [*items, _titles(paths)]
    return RawData(
        interactions_of_histories(paths, _CSV, _HISTORY, _literal),
        chained(*items) if items else NO_ITEMS,
        f"{paths[0].name} has the columns {', '.join(_HISTORY)}, as MiniOneRec; sequences are put together from "
        "histories and targets",
        [*paths, *described],
        has_times=False,
        has_split=split,
    )


def _is_part(path: Path, part: str) -> bool:
    """Whether the file or its folder is named as a part of a split."""
    pattern = re.compile(rf"(^|[._-])({part})([._-]|$)", re.IGNORECASE)
    return bool(pattern.search(path.name) or pattern.search(path.parent.name))


def _is_info(file: RawFile) -> bool:
    """Whether lines are the codes of an item, its title and its number."""
    fitting = [row for row in file.rows if len(row) == 3 and row[0].startswith("<") and row[2].strip().isdigit()]
    return file.separator == "\t" and len(fitting) > len(file.rows) / 2


def _literal(value: str) -> list:
    """A list that a table holds as Python writes it."""
    return _list(read_literal(value))


def _titles(paths: Sequence[Path]) -> Items:
    """The titles beside targets and histories."""
    columns = ("user_id", "history_item_id", "history_item_title", "item_id", "item_title")

    def read(reading: Reading, wanted: Set[str], names: Collection[str]) -> Iterator[tuple[str, Mapping[str, str]]]:
        seen: set[str] = set()

        def parse(user: str, history: str, titles: str, item: str, title: str) -> list[tuple[str, str]]:
            found = [(key_of(item, "item_id"), title)]
            if user not in seen:  # Later histories of a user hold what were targets before.
                keys = [key_of(key, "history_item_id") for key in _literal(history)]
                found += zip(keys, map(str, _literal(titles)), strict=False)
            seen.add(user)
            return found

        for path in paths:
            for found in Rows(path, _CSV, columns, reading).parsed(parse):
                for item, title in found:
                    if item in wanted and "title" in names and (plain := joined(title)):
                        yield item, {"title": plain}

    return Items({"title": True}, read)


SOURCE = Source(
    "LETTER, LC-Rec and MiniOneRec",
    "X.inter.json and perhaps X.item.json, or MiniOneRec's table of histories (or one each in folders train, valid and "
    "test) and perhaps its info and X.item.json",
    recognise,
    "that of the data set they were made from",
)
