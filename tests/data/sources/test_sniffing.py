"""What files look like from their beginning, and which files --input names."""

import gzip
import json

import pyarrow
import pyarrow.parquet
import pytest

from idgenrec_jax.data.sources.sniffing import find_files, sniff
from idgenrec_jax.errors import InputError


@pytest.fixture
def seen(tmp_path):
    """A file with this content, sniffed."""

    def run(content, name="file", **options):
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return sniff(tmp_path / name, **options)

    return run


@pytest.mark.parametrize(
    ("content", "kind", "separator", "fields"),
    [
        ("a,b\n1,2\n", "csv", ",", ("a", "b")),
        ("\ufeffa, b\r\n1,2\r\n", "csv", ",", ("a", "b")),
        ("1::2::3\n", "csv", "::", ("1", "2", "3")),
        ("a\tb c,d\n1\t2\n", "csv", "\t", ("a", "b c,d")),
        ('a;b\n"1;2";3\n', "csv", ";", ("a", "b")),
        ("a,b\n1,2\nx\n3,4\n", "csv", ",", ("a", "b")),
        ('a,b\n1,"two\nand\nthree\nmore\nlines"\n2,x\n', "csv", ",", ("a", "b")),
        ("u i i\nv i\n", "lines", "", ("u", "i", "i")),
        ("", "empty", "", ()),
        ("\n \n", "empty", "", ()),
        ('{"a": 1}\n{"b": 2}', "json", "", ("a", "b")),
        ("{'a': 1}\n", "json", "", ("a",)),
        ('{"a": 1}\n{"cut\n{"b": 1}', "json", "", ("a", "b")),
        ('{\n "a": 1\n}', "document", "", ()),
        ('[\n{"a": 1},\n{"a": 2}\n]', "document", "", ()),
        ('{"1": ["2"], "3": []}', "document", "", ()),
        ("PK\x03\x04\x00\x00", "binary", "", ()),
    ],
)
def test_kinds(seen, content, kind, separator, fields):
    file = seen(content)
    assert (file.kind, file.separator, file.fields) == (kind, separator, fields)
    assert len(file.describe().splitlines()) == 1


def test_encodings_and_separators_that_are_said(seen):
    assert seen("a,б\n1,2\n".encode("utf-16")).fields == ("a", "б")
    assert seen("a,é\n1,2\n".encode("latin-1")).fields == ("a", "é")
    assert seen("a,б\n1,2\n".encode("cp1251"), encoding="cp1251").fields == ("a", "б")
    # 0x85 is a dot of Windows-1252 and no end of a line.
    assert seen(b"1,a\x85b\n2,c\n").width == 2
    assert seen("a^b,c\n1^2,3\n", separator="^").fields == ("a", "b,c")
    assert seen('{"a"^b}\n1^2\n', separator="^").kind == "csv"
    assert seen("a,b\n", separator="^").kind == "lines"


def test_the_width_is_that_of_most_rows(seen):
    file = seen("1,2,3\n1,2\n4,5,6\n")
    assert file.width == 3 and file.regular_rows == (("1", "2", "3"), ("4", "5", "6"))
    assert seen("u i\n").width == 0


def test_only_the_beginning_is_read_and_whole_lines_count(seen):
    line = json.dumps({"user": "u", "items": ["x" * 50] * 10_000})
    file = seen(f"{line}\n{line}\n", "long.json")
    assert file.kind == "json" and file.fields == ("user", "items")
    packed = gzip.compress(b"user,item\n" + b"1,2\n" * 100_000)
    file = seen(packed, "log.csv.gz")
    assert (file.name, file.kind, len(file.rows)) == ("log.csv", "csv", 30)
    # The last of a few long lines is cut.
    assert [len(record) for record in seen(f'{{"a": 1}}\n{{"a": 2}}\n{line}', "cut.json").records] == [1, 1]
    # A character of several bytes is cut.
    assert seen("a,b\n" + "é" * 2**17, "cut.csv").kind == "csv"


def test_parquet(tmp_path):
    table = pyarrow.table({"user": ["u"] * 40, "when": pyarrow.array([1] * 40).cast(pyarrow.timestamp("ns"))})
    pyarrow.parquet.write_table(table, tmp_path / "log.parquet")
    file = sniff(tmp_path / "log.parquet")
    assert (file.kind, file.fields, len(file.records)) == ("parquet", ("user", "when"), 30)
    assert str(file.records[0]["when"]) == "1970-01-01 00:00:00"
    pyarrow.parquet.write_table(table[:0], tmp_path / "none.parquet")
    assert sniff(tmp_path / "none.parquet").records == ()
    (tmp_path / "log.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"log\.parquet: cannot be read as Parquet \(.*\); download or write it again"):
        sniff(tmp_path / "log.parquet")


def test_files_and_folders(tmp_path):
    inner = tmp_path / "download" / "ml-1m"
    inner.mkdir(parents=True)
    for name in ("README", "readme.txt", "LICENSE.md", ".DS_Store", "plot.png", "ml.zip", "b.csv", "a.csv", "md5sum"):
        (inner / name).write_text("a,b\n")
    (inner / "pictures").mkdir()
    (inner / "gone.csv").symlink_to("nowhere")
    assert [file.name for file in find_files([tmp_path])] == ["a.csv", "b.csv"]
    assert [file.name for file in find_files([str(inner / "b.csv"), inner, inner / "readme.txt"])] == [
        "b.csv", "a.csv", "readme.txt",
    ]  # fmt: skip


def test_inputs_that_are_no_files(tmp_path):
    (tmp_path / "README").write_text("nothing else")
    for path, found in (
        (tmp_path / "none", "no such file or folder"),
        (tmp_path, "holds no file"),
        (tmp_path / ("x" * 300), "cannot be read"),
        ("a\x00b", "cannot be read"),
    ):
        with pytest.raises(InputError, match=f"^--input=.*: {found}.*; name the raw files or their folder, unpacked"):
            find_files([path])
    (tmp_path / "log.csv.gz").write_text("a,b")
    with pytest.raises(InputError, match=r"log\.csv\.gz: cannot be read \(.*\); download or write it again"):
        find_files([tmp_path])
