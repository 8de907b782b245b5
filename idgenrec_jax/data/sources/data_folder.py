"""Writing a data folder, whole or not at all."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from jaxtyping import Int

from idgenrec_jax.data.dataset import ITEMS_FILE
from idgenrec_jax.data.dataset_card import CARD_FILE
from idgenrec_jax.data.sequences import JSON_SEQUENCES_FILE, SEQUENCES_FILE
from idgenrec_jax.data.sources.card import PreparationCard
from idgenrec_jax.data.sources.filters import Events, Log
from idgenrec_jax.errors import InputError
from idgenrec_jax.files import atomic_folder, atomic_writer, write_json


def check_output(output: Path) -> None:
    """Check that the folder can be made: reading the raw files can take minutes.

    Raises:
        InputError: it cannot, or something is in it.
    """
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


def write_data_folder(
    output: Path,
    card: PreparationCard,
    log: Log,
    events: Events,
    boundaries: Int[np.ndarray, "users 2"] | None,
    items: Sequence[str],
    texts: Mapping[str, Mapping[str, str]],
) -> None:
    """Write the items, the sequences and the card of events that stand user by user, oldest first.

    Sequences are lines of keys with blanks between, or lines of JSON where a key has a blank or the split needs them.
    """
    check_output(output)
    users = [log.user_keys[user] for user in dict.fromkeys(events.users.tolist())]
    plain = boundaries is None and not any(map(_has_blank, users)) and not any(map(_has_blank, items))
    rows = _lines(log, events) if plain else _json_lines(log, events, boundaries)
    records = (json.dumps(_record(item, texts.get(item), card.text_fields), ensure_ascii=False) for item in items)
    with atomic_folder(output) as temporary:
        for name, lines in ((ITEMS_FILE, records), (SEQUENCES_FILE if plain else JSON_SEQUENCES_FILE, rows)):
            with atomic_writer(temporary / name) as file:
                file.writelines(line + "\n" for line in lines)
        write_json(temporary / CARD_FILE, asdict(card))


def _record(item: str, texts: Mapping[str, str] | None, names: Sequence[str]) -> dict[str, str]:
    """The line of an item: all fields where it is described, the blank ones as well."""
    return {"id": item} if texts is None else {"id": item, **{name: texts.get(name, "") for name in names}}


def _has_blank(key: str) -> bool:
    # A byte order mark at the start of a line is no part of what a line of keys holds.
    return len(key.split()) != 1 or key.startswith("\ufeff")


def _sequences(log: Log, events: Events) -> Iterator[tuple[str, list[str]]]:
    starts = np.flatnonzero(np.diff(events.users, prepend=-1)).tolist()
    for start, end in zip(starts, [*starts[1:], len(events)], strict=True):
        items = events.items[start:end].tolist()
        yield log.user_keys[events.users[start]], [log.item_keys[item] for item in items]


def _lines(log: Log, events: Events) -> Iterator[str]:
    for user, items in _sequences(log, events):
        yield " ".join([user, *items])


def _json_lines(log: Log, events: Events, boundaries: Int[np.ndarray, "users 2"] | None) -> Iterator[str]:
    for number, (user, items) in enumerate(_sequences(log, events)):
        record: dict[str, object] = {"user": user, "items": items}
        if boundaries is not None:
            record |= {"train": int(boundaries[number, 0]), "validation": int(boundaries[number, 1])}
        yield json.dumps(record, ensure_ascii=False)
