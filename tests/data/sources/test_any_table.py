"""Any table by the names of its columns: how it may be written, and what is said where a name is wrong."""

import datetime
import json

import pyarrow
import pyarrow.parquet
import pytest

from idgenrec_jax.data.sources.rows import Reading
from idgenrec_jax.data.sources.sniffing import find_files
from idgenrec_jax.data.sources.table import TableFlags, open_table
from idgenrec_jax.data.sources.table_guess import guess
from idgenrec_jax.data.sources.values import Faults
from idgenrec_jax.errors import InputError

LOG = "user,item,when,stars\nu,a,10,4.5\nv,007,20,\n"
FLAGS = {"user_column": "user", "item_column": "item"}
EVENTS = [("u", "a", 10.0, 4.5, 0), ("v", "007", 20.0, None, 0)]


@pytest.fixture
def opened(tmp_path):
    """A table with this content, opened by flags."""

    def run(content, encoding="", name="log.csv", **flags):
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return open_table(find_files([tmp_path / name], encoding), TableFlags(**flags), encoding)

    return run


def events(raw, **reading):
    return [tuple(event) for event in raw.interactions(Reading(**reading))]


def texts(raw, items=("a", "007", "b"), **reading):
    return list(raw.items.read(Reading(**reading), frozenset(items), list(raw.items.fields)))


def write_parquet(path, **columns):
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path.read_bytes()


ALL = FLAGS | {"time_column": "when", "rating_column": "stars"}


@pytest.mark.parametrize(
    ("content", "flags"),
    [
        (LOG, {}),
        (LOG.replace(",", ";"), {}),
        (LOG.replace(",", "\t"), {}),
        (LOG.replace(",", "^"), {"separator": "^"}),
        (LOG.replace(",", " "), {"separator": "blank"}),
        (LOG.replace(",", "\t"), {"separator": "tab"}),
        (LOG.replace(",", "\t"), {"separator": "\\t"}),
        (LOG.replace(",", "::"), {}),
        (LOG.replace(",", "<>"), {"separator": "<>"}),
        (LOG.replace("\n", "\r\n"), {"quoted": False}),
        (LOG.partition("\n")[2], {"header": False}),
        (LOG.partition("\n")[2].replace(",", "^"), {"header": False, "separator": "^"}),
        (LOG.replace("u,a", '"u","a"'), {}),
    ],
)
def test_separated_values(opened, content, flags):
    columns = ALL if flags.get("header", True) else dict(zip(ALL, "1234", strict=True))
    raw = opened(content, **columns, **flags)
    assert events(raw) == EVENTS and raw.has_times and not raw.notes


def test_quotes_are_marks_only_where_they_are_said_to_be(opened):
    content = 'user\titem\nu\t"a"\nv\t"b\n'
    assert [event[1] for event in events(opened(content, **FLAGS))] == ['"a"', '"b']
    raw = opened(content, **FLAGS, quoted=True)
    faults = Faults(skip=True)
    assert [event[1] for event in events(raw, faults=faults)] == ["a"] and faults.count == 1


@pytest.mark.parametrize(
    ("unit", "value", "seconds"),
    [
        ("s", 1685577600, 1685577600),
        ("ms", "1685577600000", 1685577600),
        ("us", 1685577600000000, 1685577600),
        ("iso", "2023-06-01", 1685577600),
        ("%d/%m/%Y %H:%M", "01/06/2023 00:00", 1685577600),
    ],
)
def test_units_of_time(opened, unit, value, seconds):
    line = json.dumps({"user": 1, "item": 2, "when": value})
    raw = opened(line, **FLAGS, time_column="when", time_unit=unit)
    assert events(raw) == [("1", "2", seconds, None, 0)]


def test_json_lines_and_parquet(opened, tmp_path):
    lines = ['{"user": "u", "item": "a", "when": 10, "stars": 4.5}', '{"when": 20, "item": "007", "user": "v"}']
    assert events(opened("\n".join(lines), **ALL)) == EVENTS
    moments = [datetime.datetime(1970, 1, 1, 0, 0, seconds) for seconds in (10, 20)]
    content = write_parquet(
        tmp_path / "log.parquet", user=["u", "v"], item=["a", "007"], when=moments, stars=[4.5, None]
    )
    assert events(opened(content, name="log.parquet", **ALL)) == EVENTS


def test_without_times_the_file_is_in_order(opened):
    raw = opened(LOG, **FLAGS)
    assert [event[2] for event in events(raw)] == [1, 2] and not raw.has_times


def test_ratings_that_are_needed_and_not_there(opened):
    with pytest.raises(InputError, match="log.csv:3: has no rating, and --min_rating needs one"):
        events(opened(LOG, **ALL), needs_rating=True)
    with pytest.raises(InputError, match="--min_rating: needs ratings, and .*log.csv holds none; leave it out"):
        events(opened(LOG, **FLAGS), needs_rating=True)


def test_texts_of_another_file(opened, tmp_path):
    (tmp_path / "items.tsv").write_text(
        "id\tname\tprice\tlink\tabout\na\tPen\t3\thttp://x\t<b>Red</b>\nz\tCup\t4\t\t\n"
    )
    flags = ALL | {"items": str(tmp_path / "items.tsv"), "item_key": "id"}
    # What reads like text is taken where no columns are named.
    assert texts(opened(LOG, **flags)) == [("a", {"name": "Pen", "about": "Red"})]
    raw = opened(LOG, **flags, text_columns=("title=name", "price"))
    assert texts(raw) == [("a", {"title": "Pen", "price": "3"})]
    assert [path.name for path in raw.files] == ["log.csv", "items.tsv"]
    # In one folder, --items tells the two apart.
    raw = open_table(find_files([tmp_path]), TableFlags(**flags))
    assert events(raw) == EVENTS and texts(raw) == [("a", {"name": "Pen", "about": "Red"})]
    (tmp_path / "items.tsv").write_text('{"id": 7, "name": ["A", "B"], "id2": {"x": 1}}\n')
    raw = opened(LOG, **flags, text_columns=("name", "maker"))
    assert texts(raw, {"7"}) == [("7", {"name": "A B"})]
    assert raw.notes == [
        f"--text_columns=maker: the first records of {flags['items']} lack it; they have 'id', 'name', 'id2'"
    ]


def test_texts_beside_the_interactions(opened):
    content = 'user,item,name\nu,a,"Pen, red"\nv,a,Pen\nw\n'
    raw = opened(content, **FLAGS, text_columns=("title=name",))
    faults = Faults(skip=True)
    assert len(events(raw, faults=faults)) == 2
    assert texts(raw, faults=faults) == [("a", {"title": "Pen, red"}), ("a", {"title": "Pen"})]
    assert faults.count == 1, "a line that is read twice is one"
    assert texts(opened("1,a,Pen\n", user_column="1", item_column="2", text_columns=("title=3",), header=False)) == [
        ("a", {"title": "Pen"})
    ]
    assert opened(content, **FLAGS).items.fields == {}


def test_another_encoding(opened):
    content = "пользователь,товар\nю,я\n".encode("cp1251")
    raw = opened(content, "cp1251", user_column="пользователь", item_column="товар")
    assert events(raw, encoding="cp1251") == [("ю", "я", 1, None, 0)]


@pytest.mark.parametrize(
    ("content", "flags", "found"),
    [
        (
            LOG,
            {"user_column": "usr"},
            "--user_column=usr: .*log.csv has no such column; .* 'user', 'item', 'when', 'st",
        ),
        (LOG, {"time_column": "time"}, "--time_column=time: .* has no such column"),
        (LOG, {"rating_column": "rating"}, "--rating_column=rating: .* has no such column"),
        (LOG, {"text_columns": ("title",)}, "--text_columns=title: .* has no such column"),
        (LOG, {"header": False}, "--user_column=user: .* has no such column; its columns are '1', '2', '3', '4'"),
        (LOG, {"user_column": ""}, "--user_column: missing; log.csv .*; a guess: --source=table .*--user_column=user "),
        (LOG, {"item_column": ""}, "--item_column: missing; .*--item_column=item"),
        (LOG, {"separator": "^"}, r"--separator=\^: does not separate the lines of log.csv"),
        (
            LOG,
            {"text_columns": ("id=item",)},
            "--text_columns=id=item: expected different names, none of them blank or",
        ),
        (LOG, {"text_columns": ("a=item", "a=user")}, "--text_columns=a=item,a=user: expected different names"),
        (LOG, {"text_columns": ("item", "")}, "--text_columns=item,: expected different names"),
        (LOG, {"items": "no/such"}, "no/such: cannot be read"),
        ('{"user": 1}\n', {}, "--item_column=item: .*log.csv has no such column; its columns are 'user'"),
        ('[\n{"user": 1}\n]', {}, "log.csv: one JSON document over many lines, expected an object a line"),
        ("u i\nv i\n", {}, r"log.csv: not recognised as a table .*; name what separates its columns: --separator"),
        ("", {}, r"log.csv: not recognised as a table \(log.csv \(empty\)\)"),
        (
            "PK\x00\x01",
            {"separator": ","},
            r"log.csv: not recognised as a table \(log.csv \(packed or binary: unpack it",
        ),
    ],
)
def test_flags_that_do_not_fit(opened, content, flags, found):
    with pytest.raises(InputError, match=f"^(/.*)?{found}"):
        opened(content, **(FLAGS | flags))


def test_items_without_their_key(opened, tmp_path):
    (tmp_path / "items.csv").write_text("id,name\na,Pen\n")
    flags = FLAGS | {"items": str(tmp_path / "items.csv")}
    with pytest.raises(InputError, match=r"--item_key: missing; name the column .*: items.csv \(values .*: id, name\)"):
        opened(LOG, **flags)
    with pytest.raises(
        InputError, match="--item_key=key: .*items.csv has no such column; its columns are 'id', 'name'"
    ):
        opened(LOG, **flags, item_key="key")
    with pytest.raises(InputError, match=r"--input: found 2 files \(items.csv, log.csv\), expected the one table"):
        open_table(find_files([tmp_path]), TableFlags(**FLAGS))


@pytest.mark.parametrize(
    ("content", "flags"),
    [
        (
            "InvoiceNo,StockCode,Description,InvoiceDate,Customer ID\n1,85A,Red mug,12/1/2010 8:26,17850\n"
            "2,85B,Blue mug,12/13/2010 8:26,17850\n",
            "'--user_column=Customer ID' --item_column=StockCode --time_column=InvoiceDate "
            "'--time_unit=%m/%d/%Y %H:%M' --text_columns=Description",
        ),
        (
            '"User-ID";"ISBN";"Book-Rating"\n"1";"034";"5"\n',
            "--user_column=User-ID --item_column=ISBN --rating_column=Book-Rating",
        ),
        (
            "event_time,event_type,product_id,brand,user_id\n2019-10-01 00:00:00 UTC,view,4,nib,5\n",
            "--user_column=user_id --item_column=product_id --time_column=event_time "
            "'--time_unit=%Y-%m-%d %H:%M:%S UTC' --text_columns=brand",
        ),
        (
            "user_id,recipe_id,date,rating,review\n3,4,2003-02-17,4,fine\n",
            "--user_column=user_id --item_column=recipe_id --rating_column=rating --time_column=date --time_unit=iso",
        ),
        (
            "u1\t2009-05-04T23:08:57Z\tf1\tDeep\n",
            "--noheader --user_column=1 --item_column=3 --time_column=2 --time_unit=iso",
        ),
        ("1\t50\t5\t881250949\n", "--noheader --user_column=1 --item_column=2 --time_column=4 --time_unit=s"),
        ("visitorid,itemid,update\n1,2,soon\n", "--user_column=visitorid --item_column=itemid"),
        ("day,customer,thing_id\n20200131,1,2\n", "--user_column=customer --item_column=thing_id"),
    ],
)  # fmt: skip
def test_what_a_table_could_be(tmp_path, content, flags):
    (tmp_path / "a, b.csv").write_text(content)
    assert guess(find_files([tmp_path])) == f"--source=table '--input=\"{tmp_path}/a, b.csv\"' {flags}"


def test_what_cannot_be_guessed_has_a_pattern(tmp_path):
    (tmp_path / "log.csv").write_text("x,y\none,two\n")
    assert guess(find_files([tmp_path])).startswith("--source=table --input=FILE --user_column=COLUMN ")
