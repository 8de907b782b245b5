"""Steam: reviews and games as Python literals, and the reviews of Australian users, which are listed user by user.

Users of `steam_reviews` are told apart by `username`: every record has it, and papers count by it; `user_id` is missing
from most. What `australian_users_items` says of games owned has no times and is not read.
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
    enumeration,
    interactions_of,
    items_of,
    only,
    text,
)
from idgenrec_jax.data.sources.texts import joined
from idgenrec_jax.data.sources.values import Faults, RowFault, key_of, time_reader

_LITERALS = Form("json")
_COLUMNS = InteractionColumns("username", "product_id", "date", "iso")
_FIELDS = {
    "title": Field(("title", "app_name"), lambda title, name: joined(title) or joined(name)),
    "categories": enumeration("genres"),
    "tags": enumeration("tags"),
    "specs": enumeration("specs"),
    "developer": text("developer"),
    "publisher": text("publisher"),
    "price": text("price", default=False),
    "date": text("release_date", default=False),
}

# "Posted November 5, 2011.", or "Posted July 15." in the year of the crawl.
_POSTED = re.compile(r"\s*Posted (\w+ \d{1,2})(?:, (\d{4}))?\.?\s*")
_YEARLESS = "dates without a year are those of the crawl: they count as the year after the latest that the file names"
_RECOMMENDED = "a game that is recommended has a rating of 1, another one of 0"


def recognise(files: Sequence[RawFile]) -> RawData | None:
    """Open reviews of Steam, and the games where they are there."""
    records = [file for file in files if file.kind == "json"]
    reviews = only([file for file in records if file.has("username", "product_id", "date")], "reviews")
    nested = only([file for file in records if _is_nested(file)], "reviews of users")
    log = reviews or nested
    if log is None:
        return None
    games = only([file for file in records if file.has("id", "app_name")], "games")
    items = items_of(games.path, _LITERALS, "id", _FIELDS) if games else NO_ITEMS
    paths = [file.path for file in (log, games) if file]
    notes = [
        f"{file.path.name} is not read: it says which games a user has, not since when"
        for file in records
        if file.has("user_id", "items_count", "items")
    ]
    if reviews:
        if nested:
            notes.append(f"{nested.path.name} is not read: give it without {reviews.path.name} to read it instead")
        reason = f"{reviews.path.name} has username, product_id, date"
        return RawData(interactions_of([reviews.path], _LITERALS, _COLUMNS), items, reason, paths, notes=notes)
    reason = f"{log.path.name} has a user_id and a list of reviews with item_id and posted on each line"
    return RawData(_nested_reviews(log.path), items, reason, paths, notes=[_YEARLESS, _RECOMMENDED, *notes])


def _is_nested(file: RawFile) -> bool:
    lists = [record["reviews"] for record in file.records if isinstance(record.get("reviews"), list)]
    reviews = [review for reviews in lists for review in reviews]
    return file.has("user_id") and any(isinstance(review, dict) and "posted" in review for review in reviews)


def _nested_reviews(path: Path) -> Callable[[Reading], Iterator[Interaction]]:
    def read(reading: Reading) -> Iterator[Interaction]:
        # What is faulty is told once, by the second pass.
        years = Reading(Faults(skip=True), encoding=reading.encoding, progress=reading.progress)
        latest = max((year for _, _, review in _reviews(path, years) if (year := _year_of(review))), default=0)
        time_of = time_reader("%B %d %Y", "posted")
        for rows, user, review in _reviews(path, reading):
            try:
                if not isinstance(review, dict):
                    raise RowFault(f"a review is {shown(review)}, expected item_id and posted")
                day, year = _day_of(review)
                if not (year or latest):
                    raise RowFault(f"posted is {shown(review['posted'])}, and no date of the file has a year")
                recommend = review.get("recommend")
                rating = float(recommend) if isinstance(recommend, bool) else None
                if rating is None and reading.needs_rating:
                    raise RowFault(f"recommend is {shown(recommend)}, and --min_rating needs True or False")
                event = Interaction(
                    key_of(user, "user_id"),
                    key_of(review.get("item_id"), "item_id"),
                    time_of(f"{day} {year or latest + 1}"),
                    rating,
                )
            except RowFault as fault:
                reading.faults.note(path, rows.line, fault)
                continue
            yield event

    return read


def _reviews(path: Path, reading: Reading) -> Iterator[tuple[Rows, Any, Any]]:
    """(The rows, which know the line; the user; one review); a user may have none."""
    rows = Rows(path, _LITERALS, ("user_id", "reviews"), reading)
    for user, reviews in rows:
        if isinstance(reviews, list):
            for review in reviews:
                yield rows, user, review
        elif reviews is not None:
            reading.faults.note(path, rows.line, f"reviews is {shown(reviews)}, expected a list")


def _day_of(review: dict) -> tuple[str, int]:
    """Month and day, and the year or 0."""
    posted = review.get("posted")
    match = _POSTED.fullmatch(posted) if isinstance(posted, str) else None
    if not match:
        raise RowFault(f"posted is {shown(posted)}, expected such as 'Posted November 5, 2011.'")
    return match[1], int(match[2] or 0)


def _year_of(review: Any) -> int:
    """The year that a review names, or 0."""
    try:
        return _day_of(review)[1] if isinstance(review, dict) else 0
    except RowFault:
        return 0


SOURCE = Source(
    "Steam reviews and games",
    "steam_reviews.json (username, product_id, date) or australian_user_reviews.json (user_id, reviews), and perhaps "
    "steam_games.json (id, app_name)",
    recognise,
    "see the page of the release; cite Kang and McAuley 2018",
)
