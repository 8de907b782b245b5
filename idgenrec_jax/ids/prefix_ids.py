"""User IDs by prefix: at each point of a sequence the user is called by what was before it, in training as in test.

They are not unique: users who did the same are called the same.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from idgenrec_jax.data.dataset import Dataset
from idgenrec_jax.data.lines import parse_json, read_lines
from idgenrec_jax.errors import InputError
from idgenrec_jax.files import atomic_writer

PrefixIds = tuple[tuple[int, ...], ...]
"""Tokens for each interaction of all sequences, one after the other; none for the first of a sequence."""
_REMEDY = "the file is damaged or of other data; delete it and the checkpoints, or name the data of the run"


def prefix_texts(dataset: Dataset, item_texts: Sequence[str], max_items: int) -> list[str]:
    """Return what the ID generator reads for each interaction: the IDs of the items before it, the newest first.

    `item_texts` are the IDs of the items; of a prefix the last `max_items` are told. A first interaction has none.
    """
    texts = []
    for sequence in dataset.sequences:
        ids = [item_texts[item] for item in sequence.tolist()]
        texts += [" ".join(reversed(ids[max(0, place - max_items) : place])) for place in range(len(ids))]
    return texts


def save_prefix_ids(ids: PrefixIds, dataset: Dataset, path: Path) -> None:
    """Write a line `{"user", "tokens"}` for each user, under a temporary name first; InputError where it cannot be."""
    place = 0
    with atomic_writer(path) as file:
        for user, sequence in zip(dataset.users, dataset.sequences, strict=True):
            of_user = ids[place : place + len(sequence)]
            place += len(sequence)
            file.write(json.dumps({"user": user, "tokens": list(map(list, of_user))}, ensure_ascii=False) + "\n")


def load_prefix_ids(path: Path, dataset: Dataset) -> PrefixIds:
    """Read what `save_prefix_ids` wrote, for the users and sequences of `dataset`.

    Raises:
        InputError: the file is missing or damaged, or users or sequences are others.
    """
    of_user: dict[str, list[tuple[int, ...]]] = {}
    for number, line in read_lines(path, _REMEDY):
        place = f"{path}:{number}"
        row = parse_json(line, place, _REMEDY)
        try:
            of_user[row["user"]] = [tuple(map(int, tokens)) for tokens in row["tokens"]]
        except (KeyError, TypeError, ValueError):
            raise InputError(f'{place}: expected {{"user", "tokens"}}; {_REMEDY}') from None
    found: list[tuple[int, ...]] = []
    for user, sequence in zip(dataset.users, dataset.sequences, strict=True):
        if len(of_user.get(user, ())) != len(sequence):
            raise InputError(
                f"{path}: user {user!r} has {len(of_user.get(user, ()))} IDs, expected {len(sequence)}, one for each "
                f"interaction; {_REMEDY}"
            )
        found += of_user[user]
    return tuple(found)
