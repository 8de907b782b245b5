"""Amazon reviews as published in 2014 and 2018: one file of reviews and one of product metadata, a record a line."""

import ast
import json
import re
import warnings
from collections.abc import Iterator, Mapping, Set
from pathlib import Path

from idgenrec_jax.data.dataset import clean_text
from idgenrec_jax.data.lines import leaves, read_lines
from idgenrec_jax.data.sources.source import Interaction, RawData, Source, files_of, key_of, number_of, rating_of
from idgenrec_jax.errors import InputError

_ENDINGS = (".json", ".json.gz", ".jsonl", ".jsonl.gz")
_REMEDY = "--input is a folder with one review file (such as reviews_NAME_5.json.gz) and one meta_NAME.json.gz"
_HTML_TAG = re.compile(r"<[^<>]{1,200}>")


def read(folder: Path) -> RawData:
    """Open a folder with one review file and one metadata file (see `_find_files`).

    Reviews need reviewerID, asin and unixReviewTime, and may have overall; metadata need asin, and give title, brand,
    categories (or category) and description where present.

    Raises:
        InputError: the folder is missing, or it is not clear which of its files is which.
    """
    reviews, metadata = _find_files(folder)
    return RawData(_interactions(reviews), lambda items: _item_fields(metadata, items))


def _interactions(path: Path) -> Iterator[tuple[str, Interaction]]:
    for place, record in _read_records(path):
        _refuse_other_layouts(record, place)
        yield (
            place,
            Interaction(
                key_of(record.get("reviewerID"), "reviewerID", place),
                key_of(record.get("asin"), "asin", place),
                number_of(record.get("unixReviewTime"), "unixReviewTime", place),
                rating_of(record.get("overall"), "overall", place),
            ),
        )


def _item_fields(path: Path, items: Set[str]) -> dict[str, Mapping[str, str]]:
    fields: dict[str, Mapping[str, str]] = {}
    for place, record in _read_records(path):
        _refuse_other_layouts(record, place)
        item = key_of(record.get("asin"), "asin", place)
        if item in items:
            fields[item] = _text_fields(record)
    return fields


def _find_files(folder: Path) -> tuple[Path, Path]:
    """The review file and the metadata file (whose name starts with "meta") of a folder."""
    files = [path for path in files_of(folder, _REMEDY) if path.name.endswith(_ENDINGS)]
    metadata = [path for path in files if path.name.startswith("meta")]
    reviews = [path for path in files if path not in metadata]
    if len(metadata) != 1 or len(reviews) != 1:
        raise InputError(
            f"--input={folder}: found {len(reviews)} review files and {len(metadata)} metadata files; {_REMEDY}"
        )
    return reviews[0], metadata[0]


def _read_records(path: Path) -> Iterator[tuple[str, dict]]:
    """Yields ("file:line", record); the metadata of 2014 are Python literals instead of JSON."""
    for number, line in read_lines(path, "download it again"):
        place = f"{path}:{number}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = _read_literal(line, place)
        if not isinstance(record, dict):
            raise InputError(f"{place}: a {type(record).__name__}, not a record; download the file again")
        yield place, record


def _read_literal(line: str, place: str) -> object:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python warns of "\d" and the like in a literal, line by line.
            return ast.literal_eval(line)
    # A literal that is nested too deeply is a MemoryError or a RecursionError, a dict with a list as key a TypeError.
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise InputError(f"{place}: not JSON nor a Python literal; download it again") from error


def _refuse_other_layouts(record: dict, place: str) -> None:
    """Say so where a record is well formed, but of the reviews of 2023."""
    if "parent_asin" in record and "reviewerID" not in record and ("user_id" in record or "asin" not in record):
        raise InputError(
            f"{place}: this looks like the layout of 2023 (user_id, parent_asin, timestamp), which is not read yet; "
            "--source=amazon reads that of 2014 and 2018 (reviewerID, asin, unixReviewTime): download one of these, "
            "or write user_sequence.txt and items.jsonl yourself"
        )


def _text_fields(record: dict) -> dict[str, str]:
    """Title, brand, categories and description as plain text; fields of unexpected types are left blank."""
    return {
        "title": " ".join(_plain(record.get("title"))),
        "brand": " ".join(_plain(record.get("brand"))),
        "categories": ", ".join(dict.fromkeys(_plain(record.get("categories") or record.get("category")))),
        "description": " ".join(_plain(record.get("description"))),
    }


def _plain(value: object) -> Iterator[str]:
    """The texts in a value or its (nested) lists, without HTML tags and entities; blank ones left out."""
    for part in leaves(value):
        text = clean_text(_HTML_TAG.sub(" ", part)) if isinstance(part, str) else ""
        if text:
            yield text


SOURCE = Source("Amazon reviews of 2014 or 2018, with metadata", read)
