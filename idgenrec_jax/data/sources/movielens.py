"""MovieLens as GroupLens publishes it in CSV: ratings.csv and movies.csv."""

import csv
from collections.abc import Iterator
from pathlib import Path

from idgenrec_jax.data.lines import read_lines
from idgenrec_jax.data.sources.interactions import Interaction, Preparation, prepare_folder
from idgenrec_jax.errors import InputError

_RATING_COLUMNS = ("userId", "movieId", "rating", "timestamp")
_MOVIE_COLUMNS = ("movieId", "title", "genres")
_REMEDY = "--input is a folder with the ratings.csv and movies.csv of a MovieLens download"


def prepare_movielens(input_folder: str | Path, output: str | Path, *, core: int, min_rating: float) -> Preparation:
    """Makes a data folder from the ratings of at least `min_rating` stars; header lines may be there or not.

    Raises:
        InputError: a file is missing or faulty (file, line and remedy), or as `prepare_folder`.
    """
    folder = Path(input_folder)
    if not folder.is_dir():
        raise InputError(f"--input={folder}: no such folder; {_REMEDY}")
    interactions = []
    raw = 0
    for place, (user, movie, rating, time) in _read_rows(folder / "ratings.csv", _RATING_COLUMNS):
        try:
            stars, seconds = float(rating), int(time)
        except ValueError as error:
            raise InputError(f"{place}: rating {rating!r} or time {time!r} is not a number; mend the line") from error
        raw += 1
        if stars >= min_rating:
            interactions.append(Interaction(user, movie, seconds))
    fields = {}
    for _, (movie, title, genres) in _read_rows(folder / "movies.csv", _MOVIE_COLUMNS):
        named = [] if genres == "(no genres listed)" else genres.split("|")
        fields[movie] = {"title": title, "categories": ", ".join(named)}
    for interaction in interactions:
        if interaction.item not in fields:
            raise InputError(f"{folder / 'movies.csv'}: lacks movie {interaction.item}, which is rated; {_REMEDY}")
    return prepare_folder(
        output, "movielens", interactions, fields, core=core, min_rating=min_rating, raw_interactions=raw
    )


def _read_rows(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[str, list[str]]]:
    """Yields ("file:line", cells) of a CSV file with these columns, its header left out."""
    for number, line in read_lines(path, _REMEDY):
        cells = [cell.strip() for cell in next(csv.reader([line]))]
        if number == 1 and cells == list(columns):
            continue
        if len(cells) != len(columns) or not cells[0] or " " in cells[0]:
            raise InputError(f"{path}:{number}: found {line[:80]!r}, expected {','.join(columns)}; mend the line")
        yield f"{path}:{number}", cells
