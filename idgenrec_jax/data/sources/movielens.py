"""MovieLens as GroupLens publishes it: 100K (u.data), 1M and 10M (ratings.dat), 20M to 32M and latest (ratings.csv)."""

from collections.abc import Sequence

from idgenrec_jax.data.sources.rows import Form
from idgenrec_jax.data.sources.sniffing import RawFile
from idgenrec_jax.data.sources.source import NO_ITEMS, RawData, Source
from idgenrec_jax.data.sources.tables import Field, InteractionColumns, enumeration, interactions_of, items_of, text
from idgenrec_jax.data.sources.texts import listed

_RATINGS = ("userId", "movieId", "rating", "timestamp")
_MOVIES = ("movieId", "title", "genres")
_COLUMNS = InteractionColumns("userId", "movieId", "timestamp", "s", "rating")
_FIELDS = {"title": text("title"), "categories": enumeration("genres", "|", none=("(no genres listed)",))}

_GENRES_OF_100K = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy",
    "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)  # fmt: skip
_MOVIES_OF_100K = ("movieId", "title", "date", "video_date", "url", *_GENRES_OF_100K)


def _genres(*flags: str) -> str:
    return listed([genre for genre, flag in zip(_GENRES_OF_100K[1:], flags, strict=True) if flag.strip() == "1"])


_FIELDS_OF_100K = {
    "title": text("title"),
    "categories": Field(_GENRES_OF_100K[1:], _genres),
    "date": text("date", default=False),
}


def recognise(files: Sequence[RawFile]) -> RawData | None:
    """Open the ratings of a MovieLens download, and its movies where they are there."""
    by_name = {file.name: file for file in files}
    for name, movies_name, read in (
        ("ratings.csv", "movies.csv", _csv),
        ("ratings.dat", "movies.dat", _dat),
        ("u.data", "u.item", _100k),
    ):
        if name in by_name and (raw := read(by_name[name], by_name.get(movies_name))) is not None:
            return raw
    return None


def _csv(ratings: RawFile, movies: RawFile | None) -> RawData | None:
    if ratings.kind != "csv" or ratings.width != 4:
        return None
    form = Form("csv", None if ratings.fields == _RATINGS else _RATINGS)
    items, paths = NO_ITEMS, [ratings.path]
    if movies is not None:
        movie_form = Form("csv", None if movies.fields == _MOVIES else _MOVIES)
        items, paths = items_of(movies.path, movie_form, "movieId", _FIELDS), [ratings.path, movies.path]
    if form.columns and not _is_timed(ratings):
        return None
    reason = f"{ratings.path.name} has the columns {', '.join(_RATINGS)}, as MovieLens 20M and later"
    return RawData(interactions_of([ratings.path], form, _COLUMNS), items, reason, paths)


def _dat(ratings: RawFile, movies: RawFile | None) -> RawData | None:
    if ratings.separator != "::" or ratings.width != 4:
        return None
    form = Form("csv", _RATINGS, "::")
    items, paths = NO_ITEMS, [ratings.path]
    if movies is not None:
        # 1M is in Latin-1, 10M in UTF-8.
        movie_form = Form("csv", _MOVIES, "::", encoding="utf-8|latin-1")
        items, paths = items_of(movies.path, movie_form, "movieId", _FIELDS), [ratings.path, movies.path]
    reason = f"{ratings.path.name} has user::movie::rating::time, as MovieLens 1M and 10M"
    return RawData(interactions_of([ratings.path], form, _COLUMNS), items, reason, paths)


def _100k(ratings: RawFile, movies: RawFile | None) -> RawData | None:
    if ratings.separator != "\t" or ratings.width != 4:
        return None
    form = Form("csv", _RATINGS, "\t", quoted=False)
    items, paths = NO_ITEMS, [ratings.path]
    if movies is not None:
        movie_form = Form("csv", _MOVIES_OF_100K, "|", quoted=False, encoding="utf-8|latin-1")
        items, paths = items_of(movies.path, movie_form, "movieId", _FIELDS_OF_100K), [ratings.path, movies.path]
    reason = f"{ratings.path.name} has user, movie, rating and time with tabs between, as MovieLens 100K"
    return RawData(interactions_of([ratings.path], form, _COLUMNS), items, reason, paths)


def _is_timed(ratings: RawFile) -> bool:
    timed = sum(row[3].strip().isdigit() for row in ratings.regular_rows)
    return timed > len(ratings.regular_rows) / 2


SOURCE = Source(
    "MovieLens: 100K, 1M, 10M, 20M and later",
    "u.data with u.item, ratings.dat with movies.dat, or ratings.csv with movies.csv",
    recognise,
    "research use, not redistributed; cite Harper and Konstan 2015",
)
