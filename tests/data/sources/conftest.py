"""What a data folder holds after raw files were prepared, read without the package's own reader."""

import json

import pytest

from idgenrec_jax.data.sources import SOURCES
from idgenrec_jax.data.sources.preparation import Filters, prepare
from idgenrec_jax.data.sources.sniffing import find_files


@pytest.fixture
def prepared(tmp_path):
    """Give what prepares raw files, filters off, and returns the card, the sequences and the texts of items, without
    blank ones.

    A sequence is a list of items; where the publisher has split, it stands with its numbers of training and validation.
    """

    def run(*inputs, source="auto", **filters):
        output = tmp_path / "prepared"
        card = prepare(source, inputs, output, Filters(**{"user_core": 1, "item_core": 1, **filters}))
        # No format takes the files of another.
        files = find_files(inputs)
        assert [name for name, known in SOURCES.items() if known.recognise(files) is not None] == [card.source]
        records = map(json.loads, (output / "items.jsonl").open())
        texts = {record.pop("id"): {name: text for name, text in record.items() if text} for record in records}
        if (output / "user_sequence.txt").exists():
            rows = [line.split() for line in (output / "user_sequence.txt").open()]
            return card, {user: items for user, *items in rows}, texts
        rows = list(map(json.loads, (output / "user_sequence.jsonl").open()))
        if "train" not in rows[0]:
            return card, {row["user"]: row["items"] for row in rows}, texts
        return card, {row["user"]: (row["items"], row["train"], row["validation"]) for row in rows}, texts

    return run
