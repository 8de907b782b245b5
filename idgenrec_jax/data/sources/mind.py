"""MIND, Microsoft's news: impressions with clicks, the clicks before them, and the news."""

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from idgenrec_jax.data.lines import shown
from idgenrec_jax.data.sources.rows import Form, Reading, Rows
from idgenrec_jax.data.sources.sniffing import RawFile
from idgenrec_jax.data.sources.source import NO_ITEMS, Interaction, RawData, Source
from idgenrec_jax.data.sources.tables import Field, chained, check_unrated, items_of, text
from idgenrec_jax.data.sources.texts import listed
from idgenrec_jax.data.sources.values import RowFault, key_of, time_reader

# Titles begin with a quote now and then: nothing is quoted.
_COLUMNS = ("user", "time", "history", "impressions")
_BEHAVIORS = Form("csv", ("impression", *_COLUMNS), "\t", quoted=False)
_NEWS = Form(
    "csv",
    ("news", "category", "subcategory", "title", "abstract", "url", "title_entities", "abstract_entities"),
    "\t",
    quoted=False,
)
_TIME = "%m/%d/%Y %I:%M:%S %p"
_LIKE_A_TIME = re.compile(r"\d+/\d+/\d{4} \d+:\d\d:\d\d [AP]M")
_LIKE_IMPRESSIONS = re.compile(r"\S+-[01]( \S+-[01])*\s*")
_FIELDS = {
    "title": text("title"),
    "categories": Field(("category", "subcategory"), lambda category, subcategory: listed([category, subcategory])),
    "description": text("abstract"),
    "url": text("url", default=False),
}


def recognise(files: Sequence[RawFile]) -> RawData | None:
    """Open the behaviors of one or several folders, and the news where they are there."""
    behaviors = [file.path for file in files if _most(file, 5, _is_behavior)]
    news = [file.path for file in files if _most(file, 8, _is_news)]
    if not behaviors:
        return None
    return RawData(
        _interactions(behaviors),
        chained(*(items_of(path, _NEWS, "news", _FIELDS) for path in news)) if news else NO_ITEMS,
        f"{behaviors[0].name} has impression, user, time, history and impressions such as N1-1, as MIND",
        [*behaviors, *news],
        notes=[
            "the clicks before a user's first impression have no times: they stand before all others, in the order of "
            "the file, as seconds since 1970"
        ],
    )


def _most(file: RawFile, width: int, fits: Callable[[Sequence[str]], bool]) -> bool:
    """Whether most lines fit: a title may hold what the beginning of a file cannot be split at."""
    if file.separator != "\t":
        return False
    return sum(len(row) == width and fits(row) for row in file.rows) > len(file.rows) / 2


def _is_behavior(row: Sequence[str]) -> bool:
    return bool(_LIKE_A_TIME.fullmatch(row[2].strip()) and _LIKE_IMPRESSIONS.fullmatch(row[4]))


def _is_news(row: Sequence[str]) -> bool:
    return all(not cell.strip() or cell.startswith("[") for cell in row[6:])


def _interactions(files: Sequence[Path]) -> Callable[[Reading], Iterator[Interaction]]:
    time_of = time_reader(_TIME, "time")

    def read(reading: Reading) -> Iterator[Interaction]:
        first: dict[str, tuple[float, str]] = {}  # The time of a user's first impression, and the history there.

        def parse(user: str, time: str, history: str, impressions: str) -> tuple[str, float, list[str]]:
            check_unrated(reading)
            user, moment = key_of(user, "user"), time_of(time)
            clicked = []
            for impression in impressions.split():
                news, _, label = impression.rpartition("-")
                if not news or label not in ("0", "1"):
                    raise RowFault(f"impressions has {shown(impression)}, expected news such as N1-1 or N2-0")
                if label == "1":
                    clicked.append(key_of(news, "impressions"))
            if user not in first or moment < first[user][0]:
                for news in history.split():
                    key_of(news, "history")
                first[user] = moment, history
            return user, moment, clicked

        for path in files:
            for user, time, clicked in Rows(path, _BEHAVIORS, _COLUMNS, reading).parsed(parse):
                for news in clicked:
                    yield Interaction(user, news, time)
        for user, (_, history) in first.items():
            for place, news in enumerate(history.split()):
                yield Interaction(user, news, place)

    return read


SOURCE = Source(
    "MIND: impressions of news and the clicks on them",
    "behaviors.tsv with labelled impressions and perhaps news.tsv, of one folder or of several",
    recognise,
    "Microsoft Research License Terms: research use, not redistributed; cite Wu et al. 2020",
)
