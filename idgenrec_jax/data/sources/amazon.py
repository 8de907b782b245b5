"""Amazon reviews as published in 2014 and 2018: one file of reviews and one of product metadata, a record a line."""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

from absl import logging

from idgenrec_jax.data.dataset import clean_text
from idgenrec_jax.data.lines import read_lines
from idgenrec_jax.data.sources.interactions import Interaction, Preparation, prepare_folder
from idgenrec_jax.errors import InputError

_ENDINGS = (".json", ".json.gz", ".jsonl", ".jsonl.gz")
_REMEDY = "--input is a folder with one review file (such as reviews_NAME_5.json.gz) and one meta_NAME.json.gz"
_HTML_TAG = re.compile(r"<[^<>]{1,200}>")


def prepare_amazon(input_folder: str | Path, output: str | Path, *, core: int, min_rating: float) -> Preparation:
    """Makes a data folder from a folder with one review file and one metadata file (see `_find_files`).

    Reviews need reviewerID, asin, unixReviewTime and (where min_rating > 0) overall; metadata needs asin, and gives
    title, brand, categories (or category) and description where present.

    Raises:
        InputError: a file is missing or faulty (file, line and remedy), or as `prepare_folder`.
    """
    reviews_path, metadata_path = _find_files(Path(input_folder))
    interactions = []
    raw = 0
    for number, record in _read_records(reviews_path):
        raw += 1
        place = f"{reviews_path}:{number}"
        user, item = _text_field(record, "reviewerID", place), _text_field(record, "asin", place)
        time = _number_field(record, "unixReviewTime", place)
        if min_rating <= 0 or _number_field(record, "overall", place) >= min_rating:
            interactions.append(Interaction(user, item, int(time)))
    wanted = {interaction.item for interaction in interactions}
    fields = {}
    for number, record in _read_records(metadata_path):
        item = _text_field(record, "asin", f"{metadata_path}:{number}")
        if item in wanted:
            fields[item] = _item_fields(record)
    missing = len(wanted - fields.keys())
    if missing:
        logging.warning("%s: lacks %d of %d reviewed items, which get no text", metadata_path, missing, len(wanted))
    return prepare_folder(
        output, "amazon", interactions, fields, core=core, min_rating=min_rating, raw_interactions=raw
    )


def _find_files(folder: Path) -> tuple[Path, Path]:
    """The review file and the metadata file (whose name starts with "meta") of a folder."""
    if not folder.is_dir():
        raise InputError(f"--input={folder}: no such folder; {_REMEDY}")
    files = sorted(path for path in folder.iterdir() if path.name.endswith(_ENDINGS))
    metadata = [path for path in files if path.name.startswith("meta")]
    reviews = [path for path in files if path not in metadata]
    if len(metadata) != 1 or len(reviews) != 1:
        raise InputError(
            f"--input={folder}: found {len(reviews)} review files and {len(metadata)} metadata files; {_REMEDY}"
        )
    return reviews[0], metadata[0]


def _read_records(path: Path) -> Iterator[tuple[int, dict]]:
    """Yields (line number, record); the metadata of 2014 are Python literals instead of JSON."""
    for number, line in read_lines(path, "download it again"):
        try:
            record = json.loads(line)
        except ValueError:
            try:
                record = ast.literal_eval(line)
            except (ValueError, SyntaxError) as error:
                raise InputError(f"{path}:{number}: not JSON nor a Python literal; download it again") from error
        if not isinstance(record, dict):
            raise InputError(f"{path}:{number}: a {type(record).__name__}, not a record; download the file again")
        yield number, record


def _text_field(record: dict, name: str, place: str) -> str:
    value = record.get(name)
    if not isinstance(value, str) or len(value.split()) != 1:
        raise InputError(f"{place}: {name} is {value!r}, not a name without blanks; mend or remove the line")
    return value.strip()


def _number_field(record: dict, name: str, place: str) -> int | float:
    value = record.get(name)
    if not isinstance(value, int | float):
        raise InputError(f"{place}: {name} is {value!r}, not a number; mend or remove the line")
    return value


def _item_fields(record: dict) -> dict[str, str]:
    """Title, brand, categories and description as plain text; fields of unexpected types are left blank."""
    brand = record.get("brand")
    return {
        "title": _plain(record.get("title")),
        "brand": _plain(brand),
        "categories": ", ".join(dict.fromkeys(_flatten(record.get("categories") or record.get("category")))),
        "description": _plain(record.get("description")),
    }


def _flatten(value: object) -> Iterator[str]:
    """The non-blank strings in (nested) lists, as plain text."""
    if isinstance(value, str) and _plain(value):
        yield _plain(value)
    elif isinstance(value, list):
        for part in value:
            yield from _flatten(part)


def _plain(value: object) -> str:
    """A string, or a list of strings joined, without HTML tags and entities."""
    if isinstance(value, list):
        return " ".join(_flatten(value))
    return clean_text(_HTML_TAG.sub(" ", value)) if isinstance(value, str) else ""
