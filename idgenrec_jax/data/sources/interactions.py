"""What every raw format has in common: timed interactions, k-core filter, chronological sequences, the data folder."""

import hashlib
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from idgenrec_jax.data.dataset import ITEMS_FILE, SEQUENCES_FILE
from idgenrec_jax.errors import InputError
from idgenrec_jax.files import atomic_writer, explain_write_error, write_json

SUMMARY_FILE = "preparation.json"


@dataclass(frozen=True)
class Interaction:
    """One event; `time` is in seconds since 1970."""

    user: str
    item: str
    time: int


@dataclass(frozen=True)
class Preparation:
    """What was done to the raw data; written beside the data as preparation.json."""

    source: str
    core: int
    min_rating: float
    raw_interactions: int
    users: int
    items: int
    interactions: int
    tied_interactions: int
    tie_rule: str = "interactions of a user with equal timestamps are ordered by a hash of user and item"


def core_filter(interactions: Sequence[Interaction], core: int) -> list[Interaction]:
    """Drops users and items with fewer than `core` interactions, again and again until none is left to drop."""
    kept = list(interactions)
    while True:
        users = Counter(interaction.user for interaction in kept)
        items = Counter(interaction.item for interaction in kept)
        passing = [
            interaction for interaction in kept if users[interaction.user] >= core and items[interaction.item] >= core
        ]
        if len(passing) == len(kept):
            return kept
        kept = passing


def chronological_sequences(interactions: Sequence[Interaction]) -> tuple[dict[str, list[str]], int]:
    """User -> items in the order of time, and the number of interactions that share user and time with another.

    Ties are broken by a hash of user and item: raw files list ties by item key, an order that a model could learn and
    that says nothing about what was bought first. Users stand in the order of their first line.
    """
    by_user: dict[str, list[Interaction]] = {}
    for interaction in interactions:
        by_user.setdefault(interaction.user, []).append(interaction)
    times = Counter((interaction.user, interaction.time) for interaction in interactions)
    tied = sum(count for count in times.values() if count > 1)
    sequences = {
        user: [event.item for event in sorted(events, key=lambda event: (event.time, _tie_key(event)))]
        for user, events in by_user.items()
    }
    return sequences, tied


def _tie_key(interaction: Interaction) -> bytes:
    return hashlib.blake2b(f"{interaction.user} {interaction.item}".encode(), digest_size=8).digest()


def prepare_folder(
    output: str | Path,
    source: str,
    interactions: Sequence[Interaction],
    item_fields: Mapping[str, Mapping[str, str]],
    *,
    core: int,
    min_rating: float,
    raw_interactions: int,
) -> Preparation:
    """Filters, sorts and writes a data folder; the folder appears whole or not at all.

    `interactions` are those with a rating of at least `min_rating`, out of `raw_interactions`; items that
    `item_fields` lacks are written without text.

    Raises:
        InputError: nothing is left after filtering, `output` exists and is not empty, or it cannot be written.
    """
    output = Path(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(f"--output={output}: exists and is not empty; remove it or choose another folder")
    kept = core_filter(interactions, core)
    if not kept:
        raise InputError(
            f"--core={core} --min_rating={min_rating:g}: none of the {raw_interactions} interactions is left after "
            "filtering; lower them"
        )
    sequences, tied = chronological_sequences(kept)
    items = sorted({interaction.item for interaction in kept})
    preparation = Preparation(source, core, min_rating, raw_interactions, len(sequences), len(items), len(kept), tied)
    records = [json.dumps({"id": item, **item_fields.get(item, {})}, ensure_ascii=False) for item in items]
    lines = [" ".join([user, *sequence]) for user, sequence in sequences.items()]
    _write_folder(output, records, lines, preparation)
    return preparation


def _write_folder(output: Path, records: list[str], lines: list[str], preparation: Preparation) -> None:
    """Fills a temporary folder beside `output` and moves it into its place."""
    temporary = None
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=output.parent, prefix=f".{output.name}."))
        for name, rows in ((ITEMS_FILE, records), (SEQUENCES_FILE, lines)):
            with atomic_writer(temporary / name) as file:
                file.writelines(row + "\n" for row in rows)
        write_json(temporary / SUMMARY_FILE, asdict(preparation))
        temporary.chmod(0o755)
        os.replace(temporary, output)
    except OSError as error:
        raise explain_write_error(error, output) from error
    finally:
        if temporary is not None and temporary.exists():
            shutil.rmtree(temporary)
