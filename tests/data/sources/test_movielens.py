"""MovieLens on tiny raw files of all generations: 100K, 1M and 10M, 20M and later."""

import pytest

from idgenrec_jax.data.dataset import load_dataset
from idgenrec_jax.data.sources.preparation import Filters, prepare
from idgenrec_jax.errors import InputError

RATINGS = "1,31,2.5,40\n1,10,4.0,30\n1,7,5.0,10\n2,7,4.5,11\n"
MOVIES = '7,"Alien, The (1979)",Horror|Sci-Fi\n10,Plain (1990),(no genres listed)\n31,Low (2000),Drama\n'
TEXTS = ("title: Plain (1990)", "title: Alien, The (1979); categories: Horror, Sci-Fi")


def write_raw(folder, ratings=RATINGS, movies=MOVIES, header=True):
    folder.mkdir(exist_ok=True)
    (folder / "ratings.csv").write_text(("userId,movieId,rating,timestamp\n" if header else "") + ratings)
    (folder / "movies.csv").write_text(("movieId,title,genres\n" if header else "") + movies)
    return folder


def prepared(folder, output, source="movielens", **filters):
    return prepare(source, [folder], output, Filters(**{"user_core": 1, "item_core": 1} | filters))


@pytest.mark.parametrize("source", ["auto", "movielens"])
@pytest.mark.parametrize("header", [False, True])
def test_conversion(tmp_path, header, source):
    folder = write_raw(tmp_path / "raw", header=header)
    for other in ("links.csv", "tags.csv", "README.txt"):
        (folder / other).write_text("movieId,userId\n")
    made = prepared(folder, tmp_path / "out", source, min_rating=4.0)
    dataset = load_dataset(tmp_path / "out")
    assert dataset.items == ("10", "7") and dataset.users == ("1", "2")
    assert [sequence.tolist() for sequence in dataset.sequences] == [[1, 0], [1]]
    assert dataset.item_texts == TEXTS
    assert (made.interactions_by_filter["read"], made.interactions, made.source) == (4, 3, "movielens")


@pytest.mark.parametrize("encoding", ["latin-1", "utf-8"])
def test_the_layout_of_1m_and_10m(tmp_path, encoding):
    (tmp_path / "ratings.dat").write_text(RATINGS.replace(",", "::"))
    movies = '7::Alien, The (1979)::Horror|Sci-Fi\n10::Café (1990)::Drama\n31::"Low::Drama\n'
    (tmp_path / "movies.dat").write_text(movies, encoding=encoding)
    (tmp_path / "users.dat").write_text("1::F::1::10::48067\n")
    made = prepared(tmp_path, tmp_path / "out", "auto")
    assert "1M and 10M" in made.reason
    assert load_dataset(tmp_path / "out").item_texts == (
        "title: Café (1990); categories: Drama", 'title: "Low; categories: Drama', TEXTS[1],
    )  # fmt: skip


def test_the_layout_of_100k(tmp_path):
    (tmp_path / "u.data").write_text(RATINGS.replace(",", "\t").replace(".5", "").replace(".0", ""))
    flags = {"7": (11, 15), "10": (), "31": (0, 8)}
    titles = {"7": "Alien, The (1979)", "10": 'Café "x', "31": "unknown"}
    rows = [
        [movie, titles[movie], "01-Jan-1995", "", "http://x"] + [str(int(place in marked)) for place in range(19)]
        for movie, marked in flags.items()
    ]
    (tmp_path / "u.item").write_text("".join("|".join(row) + "\n" for row in rows), encoding="latin-1")
    (tmp_path / "u.user").write_text("1|24|M|technician|85711\n")
    made = prepared(tmp_path, tmp_path / "out", "auto")
    assert "100K" in made.reason and made.items == 3
    assert load_dataset(tmp_path / "out").item_texts == (
        'title: Café "x', "title: unknown; categories: Drama", "title: Alien, The (1979); categories: Horror, Sci-Fi",
    )  # fmt: skip
    prepared(tmp_path, tmp_path / "dated", text_columns=("date",))
    assert load_dataset(tmp_path / "dated").item_texts == ("date: 01-Jan-1995",) * 3


@pytest.mark.parametrize(
    ("ratings", "movies", "file", "found"),
    [
        ("1,7,4.0\n", MOVIES, "ratings.csv", "2: found '1,7,4.0', expected 4 columns: 'userId,movieId,rating,timest"),
        ("1,7,4.0,5\n1,7,good,5\n", MOVIES, "ratings.csv", "3: rating is 'good', expected a number; mend"),
        ("1,7,4.0,soon\n", MOVIES, "ratings.csv", "2: timestamp is 'soon', expected a number; mend"),
        ("1,7,4.0,nan\n", MOVIES, "ratings.csv", "2: timestamp is 'nan', expected a finite number below 2**63; mend"),
        ("1,7,inf,5\n", MOVIES, "ratings.csv", "2: rating is 'inf', expected a finite number below 2**63; mend"),
        ("1,7,4.0," + "9" * 5000 + "\n", MOVIES, "ratings.csv", "2: timestamp is '9999"),
        ("1,7,4.0,1_0\n", MOVIES, "ratings.csv", "2: timestamp is '1_0', expected a number; mend"),
        (",7,4.0,5\n", MOVIES, "ratings.csv", "2: userId is '', expected a key without control characters that is not"),
        (RATINGS, MOVIES + '7,"Alien,Horror\n', "movies.csv", "5: not a line of values separated by ',' (unexpected"),
        (RATINGS, MOVIES + "7,Alien, The (1979),Horror\n", "movies.csv", "5: found '7,Alien, The (1979),Horror', exp"),
    ],
)
def test_faults_are_named(tmp_path, ratings, movies, file, found):
    folder = write_raw(tmp_path / "raw", ratings, movies)
    with pytest.raises(InputError) as caught:
        prepared(folder, tmp_path / "out")
    assert str(caught.value).startswith(f"{folder / file}:{found}")
    assert not (tmp_path / "out").exists()


def test_faulty_lines_are_left_out_where_a_person_says_so(tmp_path):
    folder = write_raw(tmp_path / "raw", RATINGS + "1,7\n", MOVIES + '7,"Alien,Horror\n')
    made = prepared(folder, tmp_path / "out", bad_lines="skip")
    assert (made.interactions, made.bad_lines) == (4, 2)
    assert [place.split(":")[0] for place in made.first_bad_lines] == [
        str(folder / "ratings.csv"), str(folder / "movies.csv"),
    ]  # fmt: skip


def test_long_titles_are_read(tmp_path):
    prepared(write_raw(tmp_path / "raw", movies=f"7,{'x' * 200_000},Horror\n"), tmp_path / "out")
    assert max(map(len, load_dataset(tmp_path / "out").item_texts)) > 200_000


def test_files_that_are_missing_or_empty(tmp_path, caplog):
    with pytest.raises(InputError, match="none: no such file or folder; name the raw files"):
        prepared(tmp_path / "none", tmp_path / "out")
    folder = write_raw(tmp_path / "raw")
    # A movie that is not described is a warning, and so are all of them.
    (folder / "movies.csv").write_text("movieId,title,genres\n7,Alien (1979),Horror\n")
    assert prepared(folder, tmp_path / "some").items_without_text == 2
    assert "2 of 3 items have no text (10, 31)" in caplog.text
    (folder / "movies.csv").unlink()
    assert prepared(folder, tmp_path / "bare").items_without_text == 3
    assert "no item has a text, and textual IDs are made from text" in caplog.text
    for content, found in (
        ("", "--source=movielens: found ratings.csv (empty); expected u.data with u.item"),
        ("userId,movieId,rating,timestamp\n", "--input: holds no interaction that can be read, but no records; "),
    ):
        (folder / "ratings.csv").write_text(content)
        with pytest.raises(InputError) as caught:
            prepared(folder, tmp_path / "out")
        assert found in str(caught.value)


def test_a_missing_rating_only_matters_where_one_is_needed(tmp_path):
    folder = write_raw(tmp_path / "raw", "1,7,,10\n1,10,NaN,12\n")
    assert prepared(folder, tmp_path / "out").interactions == 2
    with pytest.raises(InputError, match=r"ratings.csv:2: has no rating, and --min_rating needs one; "):
        prepared(folder, tmp_path / "other", min_rating=1.0)


def test_a_file_of_the_same_name_from_elsewhere(tmp_path):
    (tmp_path / "ratings.csv").write_text("user,item,score,day\na,b,1,monday\n")
    with pytest.raises(InputError, match="--source=movielens: found ratings.csv .*any table is read by --source=table"):
        prepared(tmp_path, tmp_path / "out")
