"""The MovieLens converter on tiny raw files."""

import pytest

from idgenrec_jax.data.dataset import load_dataset
from idgenrec_jax.data.sources.preparation import prepare
from idgenrec_jax.errors import InputError

RATINGS = "1,31,2.5,40\n1,10,4.0,30\n1,7,5.0,10\n2,7,4.5,11\n"
MOVIES = '7,"Alien, The (1979)",Horror|Sci-Fi\n10,Plain (1990),(no genres listed)\n31,Low (2000),Drama\n'


def write_raw(folder, ratings=RATINGS, movies=MOVIES, header=False):
    folder.mkdir(exist_ok=True)
    (folder / "ratings.csv").write_text(("userId,movieId,rating,timestamp\n" if header else "") + ratings)
    (folder / "movies.csv").write_text(("movieId,title,genres\n" if header else "") + movies)
    return folder


@pytest.mark.parametrize("header", [False, True])
def test_conversion(tmp_path, header):
    folder = write_raw(tmp_path / "raw", header=header)
    made = prepare("movielens", folder, tmp_path / "out", core=1, min_rating=4.0)
    dataset = load_dataset(tmp_path / "out")
    assert dataset.items == ("10", "7") and dataset.users == ("1", "2")
    assert [sequence.tolist() for sequence in dataset.sequences] == [[1, 0], [1]]
    assert dataset.item_texts == ("title: Plain (1990)", "title: Alien, The (1979); categories: Horror, Sci-Fi")
    assert (made.raw_interactions, made.interactions, made.source) == (4, 3, "movielens")


@pytest.mark.parametrize(
    ("ratings", "movies", "file", "found"),
    [
        ("1,7,4.0\n", MOVIES, "ratings.csv", ":1: found '1,7,4.0', expected userId,movieId,rating,timestamp; mend"),
        ("1,7,4.0,5\n1,7,good,5\n", MOVIES, "ratings.csv", ":2: rating is 'good', not a number; mend"),
        ("1,7,4.0,soon\n", MOVIES, "ratings.csv", ":1: timestamp is 'soon', not a number; mend"),
        ("1,7,4.0,nan\n", MOVIES, "ratings.csv", ":1: timestamp is 'nan', not a finite number below 2**63; mend"),
        ("1,7,inf,5\n", MOVIES, "ratings.csv", ":1: rating is 'inf', not a finite number below 2**63; mend"),
        ("1,7,4.0," + "9" * 5000 + "\n", MOVIES, "ratings.csv", ":1: timestamp is '9999"),
        ("1,7,4.0,1_0\n", MOVIES, "ratings.csv", ":1: timestamp is '1_0', not a number; mend"),
        ("1 2,7,4.0,5\n", MOVIES, "ratings.csv", ":1: userId is '1 2', not a name without blanks; mend"),
        (",7,4.0,5\n", MOVIES, "ratings.csv", ":1: userId is '', not a name without blanks; mend"),
        (RATINGS, '7,"Alien,Horror\n', "movies.csv", ":1: not a line of CSV (unexpected end of data); mend"),
        (RATINGS, f"7,{'x' * 200_000},Horror\n", "movies.csv", ":1: not a line of CSV (field larger than field limit"),
        (RATINGS, "7,Alien, The (1979),Horror\n", "movies.csv", ":1: found '7,Alien, The (1979),Horror', expected"),
        ("1,8,4.0,5\n", MOVIES, "movies.csv", ": lacks movie 8, which is rated; "),
        ("", MOVIES, "ratings.csv", ": the file is empty; --input is a folder with the ratings.csv"),
    ],
)
def test_faults_are_named(tmp_path, ratings, movies, file, found):
    folder = write_raw(tmp_path / "raw", ratings, movies)
    with pytest.raises(InputError) as caught:
        prepare("movielens", folder, tmp_path / "out", core=1, min_rating=0.0)
    assert str(caught.value).startswith(f"{folder / file}{found}")
    assert not (tmp_path / "out").exists()


def test_missing_folder_and_file(tmp_path):
    with pytest.raises(InputError, match="none: no such folder; --input is a folder with"):
        prepare("movielens", tmp_path / "none", tmp_path / "out", core=1, min_rating=0.0)
    folder = write_raw(tmp_path / "raw")
    (folder / "movies.csv").unlink()
    with pytest.raises(InputError, match="movies.csv: no such file; --input is a folder with"):
        prepare("movielens", folder, tmp_path / "out", core=1, min_rating=0.0)


def test_a_missing_rating_only_matters_where_one_is_needed(tmp_path):
    folder = write_raw(tmp_path / "raw", "1,7,,10\n1,10,NaN,12\n")
    assert prepare("movielens", folder, tmp_path / "out", core=1, min_rating=0.0).interactions == 2
    with pytest.raises(InputError, match=r"ratings.csv:1: has no rating, and --min_rating=1 needs one; "):
        prepare("movielens", folder, tmp_path / "other", core=1, min_rating=1.0)


@pytest.mark.parametrize(("name", "layout"), [("ratings.dat", "MovieLens 1M or 10M"), ("u.data", "MovieLens 100K")])
def test_another_layout_is_called_by_its_name(tmp_path, name, layout):
    (tmp_path / name).write_text("1::7::4::10\n")
    with pytest.raises(InputError) as caught:
        prepare("movielens", tmp_path, tmp_path / "out", core=1, min_rating=0.0)
    assert f"this looks like the layout of {layout} ({name}), which is not read yet" in str(caught.value)
