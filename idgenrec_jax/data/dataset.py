"""Items and user sequences: read from a data folder, checked, and split into training, validation and test.

A data folder holds the sequences of users (see sequences.py) and either `items.jsonl` (one JSON object an item: "id"
and text fields) or `item_plain_text.txt` (`ITEM text`). `items.jsonl` is preferred where both exist. What a
`dataset_card.json` says of texts and of the split counts.
"""

import html
import math
import os
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from absl import logging
from jaxtyping import Int

from idgenrec_jax.data.checks import warn_about_keys, warn_about_order
from idgenrec_jax.data.dataset_card import check_split, read_card
from idgenrec_jax.data.lines import leaves, named, parse_json, read_lines, shown
from idgenrec_jax.data.sequences import JSON_SEQUENCES_FILE, SEQUENCES_FILE, key_of, read_sequences, sequences_path
from idgenrec_jax.data.words import MISSING_WORDS, is_missing
from idgenrec_jax.errors import InputError
from idgenrec_jax.files import expand_home

ITEMS_FILE = "items.jsonl"
PLAIN_TEXT_FILE = "item_plain_text.txt"

SHORTEST_EVALUATED = 3
"""Leave-one-out needs of a sequence one item to train on, one to validate on and one to test on."""

HELD_OUT = ("validation", "test")
LEAVE_ONE_OUT = "leave-one-out by time: last item test, the one before validation, the rest training"
GIVEN = "given with the data: of each user the first items train, those that follow validate, and the rest test"

_LEADING_FIELDS = ("title", "brand", "categories", "description")
_REMEDY_FOLDER = (
    f"a data folder holds {SEQUENCES_FILE} (or {JSON_SEQUENCES_FILE}) and {ITEMS_FILE} (or {PLAIN_TEXT_FILE}); "
    "make one with `python -m launch.prepare_data`, or use --data=sample"
)
_REMEDY_ITEMS = 'write one line an item: {"id": "...", "title": "...", ...}'
_REMEDY_PLAIN_TEXT = "write one line an item: ITEM text"
_BLANKS = re.compile(r"[\s\x00-\x1f\x7f-\x9f\u200b\u2028\u2029\ufeff]+")
_LIKE_A_FIELD = re.compile(r";(?=[^:;]+: )")


@dataclass(frozen=True)
class Dataset:
    """A catalogue and the chronological sequences of its users.

    `sequences[u]` holds indices into `items` (int32, repeated items kept) for `users[u]`; `item_texts[i]` describes
    `items[i]` and is "" where nothing is known.

    `boundaries` splits each sequence: the items before the first of the two positions are training, those before the
    second are validation targets, and the rest are test targets. None is leave-one-out: the last item of a sequence of
    at least three is the test target, the one before it the validation target, and the rest is training. Shorter
    sequences are training only. `split_description` says the same in words, where the data have some.

    Raises:
        ValueError: texts and items, users and sequences, or boundaries and users differ in number, or a sequence leaves
            the catalogue, or a boundary its sequence.
    """

    name: str
    users: tuple[str, ...]
    items: tuple[str, ...]
    item_texts: tuple[str, ...]
    sequences: tuple[Int[np.ndarray, " _"], ...]
    boundaries: Int[np.ndarray, "users 2"] | None = None
    split_description: str = ""

    def __post_init__(self) -> None:
        if len(self.items) != len(self.item_texts):
            raise ValueError(f"{len(self.items)} items but {len(self.item_texts)} item texts")
        if len(self.users) != len(self.sequences):
            raise ValueError(f"{len(self.users)} users but {len(self.sequences)} sequences")
        for user, sequence in zip(self.users, self.sequences, strict=True):
            if len(sequence) == 0 or sequence.min() < 0 or sequence.max() >= len(self.items):
                raise ValueError(f"the sequence of user {user} is empty or leaves the catalogue")
        if self.boundaries is not None:
            if self.boundaries.shape != (len(self.users), 2):
                raise ValueError(f"{len(self.users)} users but boundaries of the shape {self.boundaries.shape}")
            steps = np.diff(self.boundaries, prepend=0, append=self._lengths[:, None], axis=1)
            if (steps < 0).any():
                raise ValueError(f"the boundaries of user {self.users[steps.min(axis=1).argmin()]} leave the sequence")

    @property
    def num_interactions(self) -> int:
        """The number of interactions of all users together, held-out ones included."""
        return sum(len(sequence) for sequence in self.sequences)

    @property
    def split(self) -> str:
        """How targets are held out, in words."""
        return self.split_description or (LEAVE_ONE_OUT if self.boundaries is None else GIVEN)

    @property
    def evaluation_users(self) -> Int[np.ndarray, " users"]:
        """The indices (int32) of the users with a validation or a test target, in order."""
        return np.unique(np.concatenate([self.held_out_cases(split)[0] for split in HELD_OUT]))

    def training_sequence(self, user: int) -> Int[np.ndarray, " length"]:
        """Return what may be trained on of a user; under leave-one-out all items but the last two of three or more."""
        return self.sequences[user][: self._ends[user, 0]]

    def held_out_cases(self, split: str) -> tuple[Int[np.ndarray, " cases"], Int[np.ndarray, " cases"]]:
        """Return the user and the position (int32) of every target of the "validation" or the "test" split, in order.

        The history of a target is everything before it, held-out items included. An item that nothing is before is no
        target.

        Raises:
            ValueError: the split is another one.
        """
        starts, ends = self._target_bounds(split)
        counts = np.maximum(ends - starts, 0)
        # Case n of all is n less the cases of the users before, counted from the first position of its user.
        offsets = np.repeat(starts - (np.cumsum(counts) - counts), counts)
        users = np.repeat(np.arange(len(self.users), dtype=np.int32), counts)
        return users, (np.arange(len(offsets)) + offsets).astype(np.int32)

    def held_out(self, user: int, split: str) -> tuple[Int[np.ndarray, " length"], int]:
        """Return the (history, target) of a user who has one target in the "validation" or the "test" split.

        Raises:
            ValueError: the split is another one, or the user has no target there, or several (see `held_out_cases`).
        """
        sequence = self.sequences[user]
        start, end = (int(bounds[user]) for bounds in self._target_bounds(split))
        if self._ends[user, 0] == len(sequence):
            raise ValueError(f"user {self.users[user]} has {len(sequence)} interactions: training only")
        if end - start != 1:
            raise ValueError(f"user {self.users[user]} has {max(0, end - start)} targets in the {split} split, not one")
        return sequence[:start], int(sequence[start])

    def _target_bounds(self, split: str) -> tuple[Int[np.ndarray, " users"], Int[np.ndarray, " users"]]:
        """From which position of each sequence to before which one its targets stand; the first item is none."""
        if split not in HELD_OUT:
            raise ValueError(f"split is 'validation' or 'test', not {split!r}")
        train_ends, validation_ends = self._ends.T
        starts, ends = (train_ends, validation_ends) if split == "validation" else (validation_ends, self._lengths)
        return np.maximum(starts, 1), ends

    @cached_property
    def _lengths(self) -> Int[np.ndarray, " users"]:
        return np.fromiter(map(len, self.sequences), np.int64, len(self.sequences))

    @cached_property
    def _ends(self) -> Int[np.ndarray, "users 2"]:
        """Where training and where validation end in each sequence."""
        if self.boundaries is not None:
            return self.boundaries
        held_out = np.where(self._lengths >= SHORTEST_EVALUATED, 1, 0)
        return np.stack([self._lengths - 2 * held_out, self._lengths - held_out], axis=1)


def load_dataset(folder: str | Path) -> Dataset:
    """Return the data set in a data folder, checked; it is named after the folder.

    Short sequences, held-out items without a history, and items without text are allowed and counted in a warning. So
    are sequences in the order of their item keys instead of time, and keys that look like mistakes.

    Raises:
        InputError: the folder or a file of it is missing or faulty; the message names file, line and remedy.
    """
    folder = Path(expand_home(folder))
    # os.path, not Path: a name that is too long or forbidden is simply not there, instead of an OSError.
    if not os.path.isdir(folder):
        raise InputError(f"{folder}: no such folder; {_REMEDY_FOLDER}")
    path, card = sequences_path(folder), read_card(folder)
    if os.path.exists(folder / ITEMS_FILE):
        items_path = folder / ITEMS_FILE
        described = _read_json_items(items_path, has_entities=card.has_entities)
    elif os.path.exists(folder / PLAIN_TEXT_FILE):
        items_path = folder / PLAIN_TEXT_FILE
        described = _read_plain_items(items_path)
    else:
        raise InputError(f"{folder}: holds neither {ITEMS_FILE} nor {PLAIN_TEXT_FILE}; {_REMEDY_FOLDER}")
    texts = _collect_items(items_path, described)
    sequences, boundaries = read_sequences(path, {item: index for index, item in enumerate(texts)}, items_path)
    check_split(card, folder, path, is_given=boundaries is not None)
    dataset = Dataset(
        name=folder.resolve().name,
        users=tuple(sequences),
        items=tuple(texts),
        item_texts=tuple(texts.values()),
        sequences=tuple(sequences.values()),
        boundaries=boundaries,
        split_description=card.split_description,
    )
    _warn_about_what_is_not_evaluated(dataset, path)
    warn_about_order(path, dataset.items, dataset.sequences)
    warn_about_keys(items_path, "item", dataset.items, MISSING_WORDS)
    warn_about_keys(path, "user", dataset.users, MISSING_WORDS)
    return dataset


def clean_text(text: str, *, has_entities: bool = True) -> str:
    """Return the text on one line: HTML entities resolved, control characters and runs of white space single spaces.

    Without `has_entities` what looks like an entity is text, and stays. Letters and their accents are composed (Unicode
    NFC), so that equal texts are equal however they were typed. Halves of surrogate pairs, which JSON can spell but no
    text can hold, become question marks.
    """
    text = text.encode("utf-8", "replace").decode("utf-8")
    text = html.unescape(text) if has_entities else text
    return _BLANKS.sub(" ", unicodedata.normalize("NFC", text)).strip()


def item_text(fields: dict[str, str], *, has_entities: bool = True) -> str:
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
        value = clean_text(fields[name], has_entities=has_entities)
        if not value or is_missing(value) or (name == "brand" and value.lower() == "unknown"):
            continue
        label = " ".join(re.split(r"[:;\s]+", clean_text(name, has_entities=has_entities))).strip() or "text"
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


def _read_json_items(path: Path, *, has_entities: bool) -> Iterator[tuple[int, str, str]]:
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
        yield number, item, item_text(fields, has_entities=has_entities)
    _report_missing(path, missing)


def _item_key(record: dict, place: str) -> str:
    """The "id" of an item, a text or a number, without the blanks around it."""
    value = record.get("id")
    value = value.strip() if isinstance(value, str) else value
    return key_of(value, "id", place, "give every item an id without blanks around it")


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
    if blank:
        names = ", ".join(map(named, blank[:3])) + (", ..." if len(blank) > 3 else "")
        logging.warning("%s: %d of %d items have blank text (%s)", path, len(blank), len(texts), names)
    return texts


def _warn_about_what_is_not_evaluated(dataset: Dataset, path: Path) -> None:
    """Counts the users, and the held-out items, that cannot be evaluated out loud."""
    short = len(dataset.users) - len(dataset.evaluation_users)
    if dataset.boundaries is None:
        if short:
            logging.warning(
                "%s: %d of %d users have fewer than %d interactions and are used for training only",
                path,
                short,
                len(dataset.users),
                SHORTEST_EVALUATED,
            )
        return
    held_out = dataset.num_interactions - int(dataset.boundaries[:, 0].sum())
    targets = sum(len(dataset.held_out_cases(split)[0]) for split in HELD_OUT)
    if held_out > targets:
        logging.warning(
            "%s: %d of %d held-out items are the first of their users and no targets: there is no history to predict "
            "them from",
            path,
            held_out - targets,
            held_out,
        )
    if short:
        logging.info("%s: %d of %d users have no target to evaluate", path, short, len(dataset.users))
