"""The sequences of a data folder's users, and where each is split, from either of two files.

`user_sequence.txt` has `USER ITEM ITEM ...` a line, so that its keys have no blanks. `user_sequence.jsonl` has a JSON
object a line, {"user": ..., "items": [...]}, whose keys may be any text of one line, and which may say how many items
are for training and how many for validation.
"""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from idgenrec_jax.data.lines import holds_surrogate, named, parse_json, read_lines, shown
from idgenrec_jax.errors import InputError, nearest

SEQUENCES_FILE = "user_sequence.txt"
JSON_SEQUENCES_FILE = "user_sequence.jsonl"

_USER, _ITEMS, _TRAIN, _VALIDATION = _FIELDS = ("user", "items", "train", "validation")
_REMEDY = "write one line a user: USER ITEM ITEM ... in chronological order"
_JSON_REMEDY = 'write one line a user: {"user": "...", "items": ["...", ...]} in chronological order'
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


class _Row(NamedTuple):
    """A user of a file: the items as they stand there, and after how many of them training and validation end."""

    number: int
    user: str
    items: list[str]
    ends: tuple[int, int] | None


def sequences_path(folder: Path) -> Path:
    """Return which of the two files a data folder has; the blank-separated one where it has neither.

    Raises:
        InputError: it has both.
    """
    text, lines = folder / SEQUENCES_FILE, folder / JSON_SEQUENCES_FILE
    # os.path, not Path: a name that no file system takes is simply not there.
    if not os.path.exists(lines):
        return text
    if os.path.exists(text):
        raise InputError(
            f"{folder}: holds both {SEQUENCES_FILE} and {JSON_SEQUENCES_FILE}, and nothing says which counts; "
            "remove one of them"
        )
    return lines


def read_sequences(
    path: Path, item_index: Mapping[str, int], items_path: Path
) -> tuple[dict[str, Int[np.ndarray, " _"]], Int[np.ndarray, "users 2"] | None]:
    """Return user -> item indices (int32), in the order of the file, and where the parts of each sequence end.

    Of the ends (int32), training ends before the first and validation before the second; None where the file has none.

    Raises:
        InputError: the file is missing or faulty, or has an item that `item_index`, read from `items_path`, lacks.
    """
    is_json = path.name == JSON_SEQUENCES_FILE
    sequences: dict[str, np.ndarray] = {}
    first_line: dict[str, int] = {}
    ends: list[tuple[int, int] | None] = []
    for row in _json_rows(path) if is_json else _text_rows(path):
        place = f"{path}:{row.number}"
        if row.user in sequences:
            raise InputError(
                f"{place}: user {named(row.user)} already has a sequence on line {first_line[row.user]}; "
                "join the two in chronological order"
            )
        if not row.items:
            remedy = _JSON_REMEDY if is_json else _REMEDY
            raise InputError(f"{place}: user {named(row.user)} has no items; remove the line, or {remedy}")
        if ends and (row.ends is None) != (ends[0] is None):
            has, others = ("lacks", "have") if row.ends is None else ("has", "lack")
            raise InputError(
                f'{place}: {has} "{_TRAIN}" and "{_VALIDATION}", which the lines before {others}; give them on every '
                "line, or on none for leave-one-out"
            )
        try:
            sequences[row.user] = np.asarray([item_index[item] for item in row.items], dtype=np.int32)
        except KeyError as error:
            way_out = "describe it there or remove it from the sequence"
            with_blank = None if is_json else next((key for key in item_index if len(key.split()) > 1), None)
            if with_blank is not None:
                way_out += f"; for keys with blanks, such as {shown(with_blank)}, write {JSON_SEQUENCES_FILE} instead"
            raise InputError(
                f"{place}: item {named(error.args[0])} in the sequence of user {named(row.user)} is not in "
                f"{items_path}; {way_out}"
            ) from error
        first_line[row.user] = row.number
        ends.append(row.ends)
    return sequences, None if ends[0] is None else np.asarray(ends, np.int32)


def key_of(value: Any, kind: str, place: str, remedy: str) -> str:
    """Return the key that a JSON value is: a text as it is given, a number as its decimal text.

    Raises:
        InputError: it is blank or another value, or holds what a key of one line cannot: control characters, line
            breaks, half a surrogate pair.
    """
    key = str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value
    if key is None or isinstance(key, str) and not key.strip():
        found = f"no {kind}"
    elif not isinstance(key, str):
        found = f"the {kind} is {shown(value)}, not a text"
    elif holds_surrogate(key):
        found = f"the {kind} {shown(key)} holds half a surrogate pair, which no file can"
    elif _CONTROLS.search(key):
        found = f"the {kind} {shown(key)} holds a control character or a line break, which breaks lines of other files"
    else:
        return key
    raise InputError(f"{place}: {found}; {remedy}")


def _text_rows(path: Path) -> Iterator[_Row]:
    for number, line in read_lines(path, _REMEDY):
        user, *items = line.split()
        yield _Row(number, user, items, None)


def _json_rows(path: Path) -> Iterator[_Row]:
    for number, line in read_lines(path, _JSON_REMEDY):
        place = f"{path}:{number}"
        record = parse_json(line, place, _JSON_REMEDY)
        if not isinstance(record, dict):
            raise InputError(f"{place}: a JSON {type(record).__name__}, not an object; {_JSON_REMEDY}")
        for field in record:
            # A split under another name would be taken for leave-one-out.
            if field not in _FIELDS:
                raise InputError(
                    f"{place}: field {shown(field)}, expected only {', '.join(_FIELDS)}; nearest: "
                    f"{nearest(field, _FIELDS)}"
                )
        user = _exact_key(record.get(_USER), "user", place)
        items = record.get(_ITEMS)
        if not isinstance(items, list):
            raise InputError(f'{place}: "{_ITEMS}" of user {named(user)} is {shown(items)}, not a list; {_JSON_REMEDY}')
        keys = [_exact_key(item, "item", place) for item in items]
        yield _Row(number, user, keys, _ends(record, user, place))


def _ends(record: dict[str, Any], user: str, place: str) -> tuple[int, int] | None:
    """After how many items training and validation end; None where the line does not say."""
    if _TRAIN not in record and _VALIDATION not in record:
        return None
    counts = []
    for field in (_TRAIN, _VALIDATION):
        count = record.get(field)
        if type(count) is not int or count < 0:
            raise InputError(
                f'{place}: "{field}" of user {named(user)} is {shown(count)}, expected how many items, 0 or more; give '
                f'both "{_TRAIN}" and "{_VALIDATION}", or neither for leave-one-out'
            )
        counts.append(count)
    if sum(counts) > len(record[_ITEMS]):
        raise InputError(
            f"{place}: user {named(user)} has {len(record[_ITEMS])} items, fewer than {counts[0]} to train on and "
            f"{counts[1]} to validate on; correct the counts"
        )
    return counts[0], sum(counts)


def _exact_key(value: Any, kind: str, place: str) -> str:
    """A key that is used as it stands."""
    if type(value) is str and value.isascii() and value.isprintable() and value and value[0] != " " != value[-1]:
        return value  # As most are, in half the time of the checks below.
    key = key_of(value, kind, place, _JSON_REMEDY)
    if key != key.strip():
        raise InputError(
            f"{place}: the {kind} {shown(key)} has blanks around it, which are none of a key in any other file, so "
            "that two keys could become one; remove them"
        )
    return key
