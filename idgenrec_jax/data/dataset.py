"""Items and user sequences: read from a data folder, checked, and split leave-one-out.

A data folder holds `user_sequence.txt` (`USER ITEM ITEM ...`, chronological) and either `items.jsonl` (one JSON object
an item: "id" and text fields) or `item_plain_text.txt` (`ITEM text`). `items.jsonl` is preferred where both exist.
"""

import html
import math
import os
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from absl import logging
from jaxtyping import Int

from idgenrec_jax.data.checks import warn_about_keys, warn_about_order
from idgenrec_jax.data.lines import holds_surrogate, leaves, named, parse_json, read_lines, shown
from idgenrec_jax.data.words import MISSING_WORDS, is_missing
from idgenrec_jax.errors import InputError
from idgenrec_jax.files import expand_home

SEQUENCES_FILE = "user_sequence.txt"
ITEMS_FILE = "items.jsonl"
PLAIN_TEXT_FILE = "item_plain_text.txt"

SHORTEST_EVALUATED = 3
"""A sequence needs one item to train on, one to validate on and one to test on."""

_LEADING_FIELDS = ("title", "brand", "categories", "description")
_REMEDY_FOLDER = (
    f"a data folder holds {SEQUENCES_FILE} and {ITEMS_FILE} (or {PLAIN_TEXT_FILE}); "
    "make one with `python -m launch.prepare_data`, or use --data=sample"
)
_REMEDY_SEQUENCES = "write one line a user: USER ITEM ITEM ... in chronological order"
_REMEDY_ITEMS = 'write one line an item: {"id": "...", "title": "...", ...}'
_REMEDY_PLAIN_TEXT = "write one line an item: ITEM text"
_BLANKS = re.compile(r"[\s\x00-\x1f\x7f-\x9f\u200b\u2028\u2029\ufeff]+")
_LIKE_A_FIELD = re.compile(r";(?=[^:;]+: )")


@dataclass(frozen=True)
class Dataset:
    """A catalogue and the chronological sequences of its users.

    `sequences[u]` holds indices into `items` (int32, repeated items kept) for `users[u]`; `item_texts[i]` describes
    `items[i]` and is "" where nothing is known. Splits are leave-one-out: the last item of a sequence of at least
    three is the test target, the one before it the validation target, and the rest is training. Shorter sequences
    are training only.

    Raises:
        ValueError: texts and items, or users and sequences, differ in number, or a sequence leaves the catalogue.
    """

    name: str
    users: tuple[str, ...]
    items: tuple[str, ...]
    item_texts: tuple[str, ...]
    sequences: tuple[Int[np.ndarray, " _"], ...]

    def __post_init__(self) -> None:
        if len(self.items) != len(self.item_texts):
            raise ValueError(f"{len(self.items)} items but {len(self.item_texts)} item texts")
        if len(self.users) != len(self.sequences):
            raise ValueError(f"{len(self.users)} users but {len(self.sequences)} sequences")
        for user, sequence in zip(self.users, self.sequences, strict=True):
            if len(sequence) == 0 or sequence.min() < 0 or sequence.max() >= len(self.items):
                raise ValueError(f"the sequence of user {user} is empty or leaves the catalogue")

    @property
    def num_interactions(self) -> int:
        """The number of interactions of all users together, held-out ones included."""
        return sum(len(sequence) for sequence in self.sequences)

    @property
    def evaluation_users(self) -> Int[np.ndarray, " users"]:
        """The indices (int32) of the users with at least three interactions, in order."""
        indices = [user for user, sequence in enumerate(self.sequences) if len(sequence) >= SHORTEST_EVALUATED]
        return np.asarray(indices, dtype=np.int32)

    def training_sequence(self, user: int) -> Int[np.ndarray, " length"]:
        """Return what may be trained on of a user: all items but the last two, or all where there are one or two."""
        sequence = self.sequences[user]
        return sequence[:-2] if len(sequence) >= SHORTEST_EVALUATED else sequence

    def held_out(self, user: int, split: str) -> tuple[Int[np.ndarray, " length"], int]:
        """Return the (history, target) of a user in the "validation" or the "test" split.

        The history is everything before the target; for "test" it includes the validation item.

        Raises:
            ValueError: the split is another one, or the user's sequence is too short to hold anything out.
        """
        if split not in ("validation", "test"):
            raise ValueError(f"split is 'validation' or 'test', not {split!r}")
        sequence = self.sequences[user]
        if len(sequence) < SHORTEST_EVALUATED:
            raise ValueError(f"user {self.users[user]} has {len(sequence)} interactions: training only")
        position = len(sequence) - (2 if split == "validation" else 1)
        return sequence[:position], int(sequence[position])


def load_dataset(folder: str | Path) -> Dataset:
    """Return the data set in a data folder, checked; it is named after the folder.

    Short sequences, and items without text, are allowed and counted in a warning. So are sequences in the order of
    their item keys instead of time, and keys that look like mistakes.

    Raises:
        InputError: the folder or a file of it is missing or faulty; the message names file, line and remedy.
    """
    folder = Path(expand_home(folder))
    # os.path, not Path: a name that is too long or forbidden is simply not there, instead of an OSError.
    if not os.path.isdir(folder):
        raise InputError(f"{folder}: no such folder; {_REMEDY_FOLDER}")
    if os.path.exists(folder / ITEMS_FILE):
        items_path = folder / ITEMS_FILE
        described = _read_json_items(items_path)
    elif os.path.exists(folder / PLAIN_TEXT_FILE):
        items_path = folder / PLAIN_TEXT_FILE
        described = _read_plain_items(items_path)
    else:
        raise InputError(f"{folder}: holds neither {ITEMS_FILE} nor {PLAIN_TEXT_FILE}; {_REMEDY_FOLDER}")
    texts = _collect_items(items_path, described)
    sequences = _read_sequences(folder / SEQUENCES_FILE, {item: index for index, item in enumerate(texts)}, items_path)
    dataset = Dataset(
        name=folder.resolve().name,
        users=tuple(sequences),
        items=tuple(texts),
        item_texts=tuple(texts.values()),
        sequences=tuple(sequences.values()),
    )
    _warn_about_short_sequences(dataset, folder / SEQUENCES_FILE)
    warn_about_order(folder / SEQUENCES_FILE, dataset.items, dataset.sequences)
    warn_about_keys(items_path, "item", dataset.items, MISSING_WORDS)
    warn_about_keys(folder / SEQUENCES_FILE, "user", dataset.users, MISSING_WORDS)
    return dataset


def clean_text(text: str, *, entities: bool = True) -> str:
    """Return the text on one line: HTML entities resolved, control characters and runs of white space single spaces.

    Without `entities` an ampersand is only that. Letters and their accents are composed (Unicode NFC), so that equal
    texts are equal however they were typed. Halves of surrogate pairs, which JSON can spell but no text can hold,
    become question marks.
    """
    text = text.encode("utf-8", "replace").decode("utf-8")
    resolved = html.unescape(text) if entities else text
    return _BLANKS.sub(" ", unicodedata.normalize("NFC", resolved)).strip()


def item_text(fields: dict[str, str]) -> str:
    """Return a line on an item: "title: ...; brand: ...; categories: ...; description: ...", then further fields.

    Blank and missing fields (see `is_missing`), the "id" and a brand that is "Unknown" are left out; an item without
    any field left gets "". No value can be taken for a field: names have neither colon nor semicolon, and where a value
    goes on like one ("Pen; colour: red") its semicolon becomes a comma. So a field begins at the start or behind "; "
    exactly where a name, a colon and a blank stand.
    """
    names = [name for name in _LEADING_FIELDS if name in fields]
    names += [name for name in fields if name not in _LEADING_FIELDS and name != "id"]
    parts = []
    for name in names:
        value = clean_text(fields[name])
        if not value or is_missing(value) or (name == "brand" and value.lower() == "unknown"):
            continue
        label = " ".join(re.split(r"[:;\s]+", clean_text(name))).strip() or "text"
        parts.append(f"{label}: {_LIKE_A_FIELD.sub(',', value)}")
    return "; ".join(parts)


def _field_texts(value: object) -> list[str] | None:
    """A JSON value as texts: strings, numbers and what (nested) lists of them hold; None for anything else."""
    texts = []
    for part in leaves(value):
        if part is None:
            texts.append("")
        elif isinstance(part, str):
            texts.append(part)
        elif isinstance(part, int | float) and not isinstance(part, bool):
            # NaN and infinity are no JSON, but Python's own writer spells them; neither says anything of an item.
            texts.append(str(part) if isinstance(part, int) or math.isfinite(part) else "nan")
        else:
            return None
    return texts


def _read_json_items(path: Path) -> Iterator[tuple[int, str, str]]:
    """Yields (line number, item, text) of an items.jsonl."""
    missing = 0
    for number, line in read_lines(path, _REMEDY_ITEMS):
        place = f"{path}:{number}"
        record = parse_json(line, place, _REMEDY_ITEMS)
        if not isinstance(record, dict):
            raise InputError(f"{place}: a JSON {type(record).__name__}, not an object; {_REMEDY_ITEMS}")
        item = _item_key(record, place)
        fields = {}
        for name, value in record.items():
            texts = _field_texts(value)
            if texts is None:
                raise InputError(
                    f"{place}: field {shown(name)} is a JSON {type(value).__name__}; "
                    "fields are strings, numbers or lists of strings"
                )
            if name != "id":
                present = [text for text in texts if not is_missing(text)]
                missing += len(texts) - len(present)
                fields[name] = ", ".join(text for text in present if text.strip())
        yield number, item, item_text(fields)
    _report_missing(path, missing)


def _item_key(record: dict, place: str) -> str:
    """The "id" of an item, a text or a number."""
    value = record.get("id")
    item = str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value
    if item is None or isinstance(item, str) and not item.strip():
        found = "no id"
    elif not isinstance(item, str):
        found = f"the id is {shown(value)}, not a text"
    elif len(item.split()) != 1:
        found = f"an id with blanks, {shown(item)}"
    elif holds_surrogate(item):
        found = f"the id {shown(item)} holds half a surrogate pair, which no file can"
    else:
        return item.strip()
    raise InputError(f"{place}: {found}; give every item an id without blanks, as in {SEQUENCES_FILE}")


def _read_plain_items(path: Path) -> Iterator[tuple[int, str, str]]:
    """Yields (line number, item, text) of an item_plain_text.txt."""
    missing = 0
    for number, line in read_lines(path, _REMEDY_PLAIN_TEXT):
        item, *rest = line.split(maxsplit=1)
        text = clean_text(rest[0]) if rest else ""
        if is_missing(text):
            missing += 1
            text = ""
        yield number, item, text
    _report_missing(path, missing)


def _report_missing(path: Path, count: int) -> None:
    """Say how many values were read as blank although they have letters."""
    if count:
        words = ", ".join(sorted(MISSING_WORDS))
        logging.info("%s: values that only say that they are missing (%s): %d, read as blank", path, words, count)


def _collect_items(path: Path, described: Iterator[tuple[int, str, str]]) -> dict[str, str]:
    """Item -> text in the order of the file, after the checks that look at all items together."""
    texts: dict[str, str] = {}
    first_line: dict[str, int] = {}
    for number, item, text in described:
        if item in texts:
            raise InputError(
                f"{path}:{number}: item {named(item)} was already described on line {first_line[item]}; "
                "remove one of the two"
            )
        texts[item] = text
        first_line[item] = number
    blank = [item for item, text in texts.items() if not text]
    if len(blank) == len(texts):
        raise InputError(
            f"{path}: all {len(texts)} items have blank text, and textual IDs are made from text; "
            "give the items a title or a description"
        )
    if blank:
        names = ", ".join(map(named, blank[:3])) + (", ..." if len(blank) > 3 else "")
        logging.warning("%s: %d of %d items have blank text (%s)", path, len(blank), len(texts), names)
    return texts


def _read_sequences(path: Path, item_index: dict[str, int], items_path: Path) -> dict[str, Int[np.ndarray, " _"]]:
    """User -> item indices in the order of the file."""
    sequences: dict[str, np.ndarray] = {}
    first_line: dict[str, int] = {}
    for number, line in read_lines(path, _REMEDY_SEQUENCES):
        user, *items = line.split()
        if user in sequences:
            raise InputError(
                f"{path}:{number}: user {named(user)} already has a sequence on line {first_line[user]}; "
                "join the two in chronological order"
            )
        if not items:
            raise InputError(
                f"{path}:{number}: user {named(user)} has no items; remove the line, or {_REMEDY_SEQUENCES}"
            )
        try:
            sequences[user] = np.asarray([item_index[item] for item in items], dtype=np.int32)
        except KeyError as error:
            item = named(error.args[0])
            raise InputError(
                f"{path}:{number}: item {item} in the sequence of user {named(user)} is not in {items_path}; "
                "describe it there or remove it from the sequence"
            ) from error
        first_line[user] = number
    return sequences


def _warn_about_short_sequences(dataset: Dataset, path: Path) -> None:
    """Counts the users that leave-one-out cannot evaluate out loud."""
    short = len(dataset.users) - len(dataset.evaluation_users)
    if short:
        logging.warning(
            "%s: %d of %d users have fewer than %d interactions and are used for training only",
            path,
            short,
            len(dataset.users),
            SHORTEST_EVALUATED,
        )
