"""MovieLens as GroupLens publishes it in CSV: ratings.csv and movies.csv."""

import csv
from collections.abc import Iterator, Mapping, Set
from pathlib import Path

from idgenrec_jax.data.lines import named, read_lines, shown
from idgenrec_jax.data.sources.source import Interaction, RawData, Source, files_of, key_of, number_of, rating_of
from idgenrec_jax.errors import InputError

_RATING_COLUMNS = ("userId", "movieId", "rating", "timestamp")
_MOVIE_COLUMNS = ("movieId", "title", "genres")
_REMEDY = "--input is a folder with the ratings.csv and movies.csv of a MovieLens download"
_OTHER_LAYOUTS = {"ratings.dat": "MovieLens 1M or 10M", "u.data": "MovieLens 100K"}


def read(folder: Path) -> RawData:
    """Open a folder with ratings.csv and movies.csv; header lines may be there or not.

    Raises:
        InputError: the folder is missing, or holds a MovieLens download of another layout.
    """
    names = {path.name for path in files_of(folder, _REMEDY)}
    for name, layout in _OTHER_LAYOUTS.items():
        if name in names and "ratings.csv" not in names:
            raise InputError(
                f"--input={folder}: this looks like the layout of {layout} ({name}), which is not read yet; {_REMEDY}, "
                "such as ml-latest-small, ml-20m or later"
            )
    return RawData(_interactions(folder / "ratings.csv"), lambda items: _item_fields(folder / "movies.csv", items))


def _interactions(path: Path) -> Iterator[tuple[str, Interaction]]:
    for place, (user, movie, rating, time) in _read_rows(path, _RATING_COLUMNS):
        yield (
            place,
            Interaction(
                key_of(user, "userId", place),
                key_of(movie, "movieId", place),
                number_of(time, "timestamp", place),
                rating_of(rating, "rating", place),
            ),
        )


def _item_fields(path: Path, items: Set[str]) -> dict[str, Mapping[str, str]]:
    fields: dict[str, Mapping[str, str]] = {}
    for place, (movie, title, genres) in _read_rows(path, _MOVIE_COLUMNS):
        if key_of(movie, "movieId", place) in items:
            listed = [] if genres == "(no genres listed)" else genres.split("|")
            fields[movie] = {"title": title, "categories": ", ".join(listed)}
    missing = sorted(items - fields.keys())
    if missing:
        raise InputError(f"{path}: lacks movie {named(missing[0])}, which is rated; {_REMEDY}")
    return fields


def _read_rows(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[str, list[str]]]:
    """Yields ("file:line", cells) of a CSV file with these columns, its header left out."""
    for number, line in read_lines(path, _REMEDY):
        try:
            cells = [cell.strip() for cell in next(csv.reader([line], strict=True))]
        except csv.Error as error:  # A quote without its partner, or a cell of more than 128 KiB.
            raise InputError(f"{path}:{number}: not a line of CSV ({error}); mend the line") from error
        if number == 1 and cells == list(columns):
            continue
        if len(cells) != len(columns):
            raise InputError(f"{path}:{number}: found {shown(line)}, expected {','.join(columns)}; mend the line")
        yield f"{path}:{number}", cells


SOURCE = Source("MovieLens in CSV, such as ml-latest-small", read)
