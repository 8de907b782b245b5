"""dataset_card.json in a data folder: what the program that made the folder says of its texts and of its split."""

import os
from dataclasses import dataclass
from pathlib import Path

from idgenrec_jax.errors import InputError
from idgenrec_jax.files import read_json

CARD_FILE = "dataset_card.json"
LEAVE_ONE_OUT = "leave_one_out"
SPLIT_NAMES = (LEAVE_ONE_OUT, "given", "time")
"""How targets may be held out: the last two items of a user, as the publisher of the data did, or by points in time."""
PLAIN_TEXTS = "plain"

_REMEDY = "mend it, or delete it: it is no part of the data"


@dataclass(frozen=True)
class DatasetCard:
    """What is read of a card; `split_name` is one of SPLIT_NAMES, or None where the card names no split.

    `has_entities`: texts in items.jsonl may have HTML entities, as raw data have. `split_description` is "" where there
    is none.
    """

    has_entities: bool = True
    split_name: str | None = None
    split_description: str = ""


def read_card(folder: Path) -> DatasetCard:
    """Return the card of a data folder, of default values where the folder has none.

    Raises:
        InputError: it is not JSON, or a field that is read of it has another form.
    """
    path = folder / CARD_FILE
    if not os.path.exists(path):
        return DatasetCard()
    fields = read_json(path, remedy=_REMEDY, fields={})
    texts = fields.get("texts")
    if texts not in (None, PLAIN_TEXTS):
        raise InputError(f'{path}: texts is {texts!r:.60}, expected "{PLAIN_TEXTS}" or no such field; {_REMEDY}')
    has_entities = texts is None
    if "split" not in fields:
        return DatasetCard(has_entities)
    read_json(path, remedy=_REMEDY, fields={"split.name": str, "split.description": str})
    split = fields["split"]
    description = " ".join(split["description"].split())
    if split["name"] not in SPLIT_NAMES or not description:
        raise InputError(
            f"{path}: split is {split!r:.80}, expected a name, one of {', '.join(SPLIT_NAMES)}, and a description that "
            f"is not blank; {_REMEDY}"
        )
    return DatasetCard(has_entities, split["name"], description)


def check_split(card: DatasetCard, folder: Path, sequences_path: Path, *, is_given: bool) -> None:
    """Raise InputError where the card names another kind of split than the sequences, which `is_given` there or not."""
    if card.split_name is None or is_given == (card.split_name != LEAVE_ONE_OUT):
        return
    has = "have" if is_given else "lack"
    raise InputError(
        f"{folder / CARD_FILE}: the split is {card.split_name}, but the lines of {sequences_path} {has} "
        '"train" and "validation", which say where another split than leave_one_out is; correct one of the two'
    )
