"""Goodreads (UCSD Book Graph): interactions or reviews with times, or the CSV of all interactions, and books.

The CSV numbers books in its own way; `book_id_map.csv` says which book of Goodreads each number is. Authors of books
are numbers of a further file; they are left out.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from idgenrec_jax.data.lines import shown
from idgenrec_jax.data.sources.rows import Form, Reading, Rows
from idgenrec_jax.data.sources.sniffing import RawFile
from idgenrec_jax.data.sources.source import NO_ITEMS, Interaction, RawData, Source
from idgenrec_jax.data.sources.tables import (
    Field,
    InteractionColumns,
    interactions_of,
    items_of,
    only,
    open_log,
    text,
)
from idgenrec_jax.data.sources.texts import joined, listed
from idgenrec_jax.data.sources.values import RowFault, key_of, number_of, rating_of

_JSON, _CSV = Form("json"), Form("csv")
_TIMED = InteractionColumns("user_id", "book_id", "date_added", "%a %b %d %H:%M:%S %z %Y", "rating")
_NUMBERED = InteractionColumns("user_id", "book_id", rating="rating")
_NOTES = (
    "every book on a user's shelves is an interaction, whatever is_read says",
    "a rating of 0 is none: --min_rating leaves it out",
)
_MAP = ("book_id_csv", "book_id")

_MOST_SHELVES = 5
# Shelves that say what a reader does with a book, not what the book is.
_READERS_SHELF = re.compile(
    r"\b(read|reading|tbr|dnf|finished|unfinished|abandoned|own|owned|have|buy|bought|borrowed|wish|wishlist|my|library"
    r"|favou?rites?|kindle|e-?books?|audio|audio-?books?|audible|default|shelf)\b"
)


def _shelves(value: Any) -> str:
    """The names of the shelves that most readers have put a book on."""
    shelves = [shelf for shelf in value if isinstance(shelf, dict)] if isinstance(value, list) else []
    names = [joined(shelf.get("name")) for shelf in sorted(shelves, key=_readers, reverse=True)]
    names = [name.replace("-", " ") for name in names if name and not _READERS_SHELF.search(name)]
    return listed(names[:_MOST_SHELVES])


def _readers(shelf: dict) -> int | float:
    try:
        return number_of(shelf.get("count"), "count")
    except RowFault:
        return 0


_FIELDS = {
    "title": Field(("title", "title_without_series"), lambda title, bare: joined(title) or joined(bare)),
    "categories": Field(("popular_shelves",), _shelves),
    "description": text("description"),
}


def recognise(files: Sequence[RawFile]) -> RawData | None:
    """Open interactions of Goodreads, those with times where there are both, and the books where they are there."""
    timed = [file for file in files if file.kind == "json" and file.has("user_id", "book_id", "date_added", "rating")]
    numbered = only(
        [file for file in files if file.separator == "," and file.has("user_id", "book_id", "is_read", "rating")],
        "numbered interactions",
    )
    if not timed:
        return _open_numbered(numbered, files) if numbered else None
    # Files of reviews hold those interactions that have a review.
    logs = [file for file in timed if file.has("is_read")] or timed
    unread = [file for file in (*timed, numbered) if file and file not in logs]
    notes = [
        f"{file.path.name} is not read: {logs[0].path.name} is, with all interactions and times" for file in unread
    ]
    return open_log([file for file in files if file not in unread], _JSON, _TIMED, _FIELDS, [*_NOTES, *notes])


def _open_numbered(log: RawFile, files: Sequence[RawFile]) -> RawData:
    mapping = only([file for file in files if file.separator == "," and file.has(*_MAP)], "numbers of books")
    books = only(
        [file for file in files if file.kind == "json" and file.has("book_id", "title") and not file.has("user_id")],
        "books",
    )
    reason = f"{log.path.name} has user_id, book_id, is_read, rating"
    if mapping is None:
        note = f"book_id_map.csv is not there: books are called by the numbers of {log.path.name}, and have no texts"
        events = interactions_of([log.path], _CSV, _NUMBERED)
        return RawData(events, NO_ITEMS, reason, [log.path], has_times=False, notes=[*_NOTES, note])
    return RawData(
        _mapped_interactions(log.path, mapping.path),
        items_of(books.path, _JSON, "book_id", _FIELDS) if books else NO_ITEMS,
        reason,
        [file.path for file in (log, mapping, books) if file],
        has_times=False,
        notes=_NOTES,
    )


def _mapped_interactions(log: Path, mapping: Path) -> Callable[[Reading], Iterator[Interaction]]:
    def read(reading: Reading) -> Iterator[Interaction]:
        books = dict(Rows(mapping, _CSV, _MAP, reading).parsed(lambda *row: tuple(map(key_of, row, _MAP))))
        order = 0

        def parse(user: Any, number: Any, rating: Any) -> Interaction:
            nonlocal order
            order += 1
            book = books.get(key_of(number, "book_id"))
            if book is None:
                raise RowFault(f"book_id is {shown(number)}, which {mapping} does not have")
            return Interaction(key_of(user, "user_id"), book, order, rating_of(rating, "rating"))

        yield from Rows(log, _CSV, ("user_id", "book_id", "rating"), reading).parsed(parse)

    return read


SOURCE = Source(
    "Goodreads (UCSD Book Graph)",
    "interactions or reviews in JSON (user_id, book_id, rating, date_added) or goodreads_interactions.csv with "
    "book_id_map.csv, and perhaps the books (book_id, title)",
    recognise,
    "academic use, not redistributed; cite Wan and McAuley 2018 and Wan et al. 2019",
)
