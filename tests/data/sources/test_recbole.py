"""RecBole's atomic files, whole and split, on tiny raw files."""

import pytest

from idgenrec_jax.errors import InputError

INTER = 'user_id:token\titem_id:token\trating:float\ttimestamp:float\nu 1\t007\t5\t30\nu 1\tB\t2\t10.5\nv\t"B\t4\t20\n'
ITEMS = (
    "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\tprice:float\tposter:token\n"
    '007\tThe "Spy" Loved\t1977\tAction Sci-Fi\t3.5\thttp://a/b\n'
    "B\tToy Story\t1995\tChildren's\t1\thttp://a/c\n"
    '"B\t"Quoted\t1996\t\t\thttp://a/d\n'
)
SPLIT_HEADER = "user_id:token\titem_id_list:token_seq\titem_id:token\n"


def write(folder, **files):
    for ending, text in files.items():
        (folder / f"small.{ending.replace('_', '.')}").write_text(text)
    return folder


def test_whole_data_set(tmp_path, prepared):
    folder = write(tmp_path, inter=INTER, item=ITEMS, user="user_id:token\tage:token\nu 1\t30\n")
    card, sequences, texts = prepared(folder)
    assert card.source == "recbole" and "seconds" in card.reason and card.split.name == "leave_one_out"
    assert sequences == {"u 1": ["B", "007"], "v": ['"B']}
    assert texts == {
        "007": {"title": 'The "Spy" Loved', "categories": "Action, Sci-Fi"},
        "B": {"title": "Toy Story", "categories": "Children's"},
        '"B': {"title": '"Quoted'},
    }


def test_fields_that_are_asked_for_and_ratings(tmp_path, prepared):
    folder = write(tmp_path, inter=INTER, item=ITEMS)
    card, sequences, texts = prepared(folder, min_rating=4.0, text_columns=("price", "release_year", "poster"))
    assert sequences == {"u 1": ["007"], "v": ['"B']}
    assert texts["007"] == {"price": "3.5", "release_year": "1977", "poster": "http://a/b"}


def test_lists_of_categories(tmp_path, prepared):
    inter = "user_id:token\titem_id:token\nu\ta\nu\tb\nu\tc\n"
    items = (
        "item_id:token\ttitle:token_seq\tname:token\tcategories:token_seq\n"
        "a\tDoll\tD\t'Toys & Games', 'Dolls'\nb\tBall\tB\tToys & Games, Balls\nc\tCar\tC\tToys Cars\n"
    )
    card, sequences, texts = prepared(write(tmp_path, inter=inter, item=items))
    assert sequences == {"u": ["a", "b", "c"]} and card.order == "the order of the files, which hold no times"
    assert texts["a"] == {"title": "Doll", "name": "D", "categories": "Toys & Games, Dolls"}
    assert [texts[item]["categories"] for item in "bc"] == ["Toys & Games, Balls", "Toys, Cars"]


def test_milliseconds_are_told_by_their_size(tmp_path, prepared):
    inter = "session_id:token\titem_id:token\ttimestamp:float\ns\tb\t1500000001000\ns\ta\t1500000000000\n"
    card, sequences, _ = prepared(write(tmp_path, inter=inter), since="2017-07-14T02:40:01")
    assert "milliseconds" in card.reason
    assert sequences == {"s": ["b"]}


def test_a_split_of_single_events(tmp_path, prepared):
    header = "user_id:token\titem_id:token\ttimestamp:float\n"
    folder = write(
        tmp_path,
        inter=header + "u\tx\t1\n",
        train_inter=header + "u\tb\t2\nu\ta\t1\nw\ta\t1\n",
        valid_inter=header + "u\tc\t3\n",
        test_inter=header + "u\td\t4\nu\te\t5\n",
    )
    card, sequences, _ = prepared(folder)
    assert card.split.name == "given" and card.notes == ["small.inter was not read: the split in three was"]
    assert sequences == {"u": (["a", "b", "c", "d", "e"], 2, 1), "w": (["a"], 1, 0)}


@pytest.mark.parametrize(
    "train",
    [
        "u\ta\tb\nu\ta b\tc\nu\tb c\td\nw\tx\ty\n",  # The oldest target first, histories cut to two items.
        "w\tx\ty\nu\tb c\td\nu\ta b\tc\nu\ta\tb\n",  # The newest first.
        "u\ta b\tc\nu\ta b\tc\nw\tx\ty\nu\ta\tb\nu\tb c\td\nu\ta b\tc\n",  # Shuffled, with repeats.
    ],
)
def test_a_split_of_histories_and_targets(tmp_path, prepared, caplog, train):
    folder = write(
        tmp_path,
        train_inter=SPLIT_HEADER + train,
        valid_inter=SPLIT_HEADER + "u\tc d\te\nnew\tp q\tr\n",
        test_inter=SPLIT_HEADER + "u\td e\ta\nw\tx y\tz\n",
    )
    card, sequences, _ = prepared(folder)
    assert card.split.name == "given"
    assert sequences == {
        "u": (["a", "b", "c", "d", "e", "a"], 4, 1),
        "w": (["x", "y", "z"], 2, 0),
        "new": (["p", "q", "r"], 2, 1),
    }
    assert "do not continue" not in caplog.text


def test_a_history_that_is_frozen_adds_its_target_only(tmp_path, prepared, caplog):
    folder = write(
        tmp_path,
        train_inter=SPLIT_HEADER + "u\ta\tb\n",
        valid_inter=SPLIT_HEADER + "u\ta b\tc\n",
        test_inter=SPLIT_HEADER + "u\ta b\td\n",
    )
    assert prepared(folder)[1] == {"u": (["a", "b", "c", "d"], 2, 1)}
    assert "do not continue" not in caplog.text


def test_a_history_that_does_not_continue_is_told(tmp_path, prepared, caplog):
    folder = write(
        tmp_path,
        train_inter=SPLIT_HEADER + "u\ta\tb\nu\tx y z\tc\n",
        valid_inter=SPLIT_HEADER + "u\tb z c\td\n",
        test_inter=SPLIT_HEADER + "u\tc d\te\n",
    )
    assert prepared(folder)[1] == {"u": (["a", "b", "c", "d", "e"], 3, 1)}
    assert "2 histories do not continue the rows before them" in caplog.text
    assert f"{folder / 'small.train.inter'}:3 (user u), {folder / 'small.valid.inter'}:2 (user u)" in caplog.text


def test_faults_and_ratings_that_are_not_there_are_named(tmp_path, prepared):
    path = write(tmp_path, inter=INTER + "w\t \t1\t1\n") / "small.inter"
    with pytest.raises(InputError) as caught:
        prepared(path)
    assert str(caught.value).startswith(f"{path}:5: item_id:token is ' ', expected a key")
    card, sequences, _ = prepared(path, bad_lines="skip")
    assert card.bad_lines == 1 and "w" not in sequences


def test_two_parts_of_three_are_not_taken(tmp_path, prepared):
    write(tmp_path, train_inter=SPLIT_HEADER + "u\ta\tb\n", test_inter=SPLIT_HEADER + "u\ta b\tc\n")
    with pytest.raises(InputError, match=r"--source=recbole: found small.test.inter .*expected X.inter whose header"):
        prepared(tmp_path, source="recbole")
