"""Records of raw files: every way they are written, and every fault in one line that names its place."""

import decimal
import gzip
import json

import pyarrow
import pyarrow.parquet
import pytest

from idgenrec_jax.data.sources.rows import Form, Reading, Rows
from idgenrec_jax.data.sources.values import Faults, RowFault
from idgenrec_jax.errors import InputError

JSON, CSV = Form("json"), Form("csv")


@pytest.fixture
def read(tmp_path):
    """Reads some columns of a file with this content; gives its rows and, where faulty ones are skipped, the faults."""

    def run(content, wanted=("a", "b"), form=CSV, name="raw", encoding="", skip=True):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
        faults = Faults(skip)
        rows = list(Rows(path, form, wanted, Reading(faults, encoding=encoding)))
        assert faults.count >= len(faults.places)
        return rows, [place.removeprefix(f"{path}:") for place in faults.places]

    return run


def test_objects_give_the_fields_that_are_asked_for(read):
    lines = ['{"b": 2, "x": [1, {"a": 3}], "a": "é"}', "", '{"a": null}', '{"b": "2"}']
    assert read("\n".join(lines), form=JSON) == ([("é", 2), (None, None), (None, "2")], [])
    assert read("\ufeff" + "\r\n".join(lines) + "\r\n", form=JSON)[0][2] == (None, "2")
    # A column given twice, and names that JSON writes with a backslash.
    assert read(lines[0], ("a", "b", "a"), JSON)[0] == [("é", 2, "é")]
    assert read(json.dumps({'"': 1, "\x00": 2, "\\": 3}), ('"', "\x00", "\\"), JSON) == ([(1, 2, 3)], [])
    assert read('{"a": 18446744073709551615, "b": 1e3}', form=JSON)[0] == [(2**64 - 1, 1000.0)]


def test_objects_that_are_no_strict_json(read):
    rows, faults = read(
        '{"a": NaN, "b": -Infinity}\n{"a": "\\ud800"}\n' + r"{'a': u'it\'s', 'b': ['x', None, True]}" + "\n", form=JSON
    )
    assert str(rows[0]) == "(nan, -inf)" and rows[1:] == [("\ud800", None), ("it's", ["x", None, True])]
    assert not faults


DEEP = 100_000
TEN_MILLION = 10_000_000


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("[1]", "a list, expected an object"),
        ("7", "a int, expected an object"),
        ("null", "a NoneType, expected an object"),
        ('{"a": 1', "not JSON nor a Python literal: '{\"a\": 1'"),
        ('{"a": 1} {"a": 2}', "not JSON nor"),
        ("[" * DEEP, "not JSON nor"),
        ('{"a": ' * DEEP, "not JSON nor"),
        ("{'a': " * 5000, "not JSON nor"),
        ("-" * DEEP + "1", "not JSON nor"),
        ("1" + "+1" * DEEP, "not JSON nor"),
        ("{[]: 1}", "not JSON nor"),
        ("{b'a': 1}", "an object whose fields have other names than texts: "),
        ("{'a': '\\ud", "not JSON nor"),
        ("9" * 5000, "not JSON nor"),
        ("x" * TEN_MILLION, "not JSON nor"),
        ("{'a': [" + "1," * (TEN_MILLION // 2), "not JSON nor"),
    ],
)
def test_lines_that_are_no_object(read, line, found):
    rows, faults = read(f'{{"a": 1}}\n{line}\n{{"a": 2}}', ("a",), JSON)
    assert rows == [(1,), (2,)] and len(faults) == 1
    assert faults[0].startswith(f"2: {found}") and len(faults[0]) < 150 and "\n" not in faults[0]
    with pytest.raises(InputError, match=r"raw:2: .*; mend or remove the line, or leave .* out with --bad_lines=skip$"):
        read(f'{{"a": 1}}\n{line}\n', ("a",), JSON, skip=False)


def test_a_line_of_ten_million_characters(read):
    text = "x" * TEN_MILLION
    assert read(f'{{"b": "{text}", "a": 1}}', ("a",), JSON)[0] == [(1,)]
    assert read(f"a,b\n1,{text}\n")[0] == [("1", text)]


def test_only_the_first_five_places_are_kept(read, tmp_path):
    _, faults = read("x\n" * 9, form=JSON)
    assert [fault[0] for fault in faults] == list("12345")


def test_separated_values(read):
    text = 'x,a,b\r\n0,1,"two, ""2"""\r\n\r\n0,"on\r\ntwo lines",3\r\n0,,\r\n'
    assert read(text) == ([("1", 'two, "2"'), ("on\r\ntwo lines", "3"), ("", "")], [])
    assert read("\ufeffb;a \n1;2", form=Form("csv", separator=";"))[0] == [("2", "1")]
    assert read('1\t"2\n3\t4"5', form=Form("csv", ("a", "b"), "\t", quoted=False))[0] == [("1", '"2'), ("3", '4"5')]
    assert read('1::"2\r\n\r\n3::4', form=Form("csv", ("a", "b"), "::"))[0] == [("1", '"2'), ("3", "4")]
    assert read("a,b\n", form=CSV) == ([], [])
    assert read("a,b\n1,2\x00", form=CSV)[0] == [("1", "2\x00")]


def test_a_quote_without_its_partner_costs_its_own_line(read):
    rows, faults = read('a,b\n1,2\n3,"4\n5,6\n7,8\n')
    assert rows == [("1", "2"), ("5", "6"), ("7", "8")]
    assert faults == ["3: not a line of values separated by ',' (unexpected end of data)"]
    with pytest.raises(InputError, match="raw:3: not a line of values .*; mend or remove the line"):
        read('a,b\n1,2\n3,"4\n5,6\n7,8\n', skip=False)
    rows, faults = read('a,b\n3,"4\n5,"6"\n7,8\n')
    assert rows == [("5", "6"), ("7", "8")] and [fault[:2] for fault in faults] == ["2:"]


def test_a_cell_without_end_is_too_long(read, monkeypatch):
    monkeypatch.setattr("idgenrec_jax.data.sources.rows.LONGEST_CELL", 100)
    rows, faults = read('a,b\n3,"4\n' + "5,6\n" * 100)
    assert rows == [("5", "6")] * 100 and "field larger than field limit (100)" in faults[0]


def test_faulty_lines_without_number(read):
    # Each begins the reading anew; what that leaves behind must not add up.
    rows, faults = read("a,b\n" + '1,"x"y\n' * 5_000 + "3,4\n")
    assert rows == [("3", "4")] and faults[4].startswith("6: ")


def test_lines_of_another_number_of_columns(read):
    rows, faults = read("a,b\n1,2\n3\n4,5,6\n  \n7,8\n")
    assert rows == [("1", "2"), ("7", "8")]
    assert faults == ["3: found '3', expected 2 columns: 'a,b'", "4: found '4,5,6', expected 2 columns: 'a,b'"]
    assert read("1::2\n3::4::5\n", form=Form("csv", ("a", "b"), "::"))[1] == [
        "2: found '3::4::5', expected 2 columns: 'a::b'"
    ]


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("a,c\n1,2\n", "raw:1: has no column 'b'; its columns are 'a', 'c'"),
        ("", "raw:1: has no column 'a'; its columns are none, for the file is empty"),
        ("a,b,a\n1,2,3\n", "raw:1: has two columns 'a'; its columns are 'a', 'b', 'a'"),
    ],
)
def test_columns_that_are_not_there(read, content, found):
    with pytest.raises(InputError) as caught:
        read(content)
    assert str(caught.value).endswith(found)


def test_encodings(read):
    latin = "a,b\né,1\n".encode("latin-1")
    rows, faults = read(latin + b"x,2\n")
    assert rows == [("x", "2")]
    assert faults == ["2: not utf-8 text (byte 0xe9 at position 1); name the encoding, such as --encoding=latin-1"]
    assert read(latin, encoding="latin-1")[0] == [("é", "1")]
    either = Form("csv", encoding="utf-8|latin-1")
    assert read(latin, form=either)[0] == read(latin.decode("latin-1"), form=either)[0] == [("é", "1")]
    assert read('{"a": "é"}'.encode("latin-1"), ("a",), JSON, encoding="latin-1")[0] == [("é",)]
    rows, faults = read('{"a": "é"}'.encode("latin-1"), ("a",), JSON)
    assert not rows and "byte 0xe9 at position 8" in faults[0]
    assert read("a,b\nдва,2\n".encode("cp1251"), encoding="cp1251")[0] == [("два", "2")]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_encodings_of_several_bytes(read, encoding):
    said = "" if encoding == "utf-16" else encoding  # The mark at the beginning says it.
    assert read('a,b\r\nĊé,"1\n2"\r\n'.encode(encoding), encoding=said)[0] == [("Ċé", "1\n2")]
    assert read('{"a": "Ċ"}\n{"a": 2}\n'.encode(encoding), ("a",), JSON, encoding=said)[0] == [("Ċ",), (2,)]


def test_encodings_that_are_wrong(read):
    with pytest.raises(InputError, match="raw: not utf-16 text .*; name its encoding: --encoding"):
        read("a,b\n1,2".encode("utf-16")[:-1])
    for name in ("klingon", "base64", "rot13", "a\x00b"):
        with pytest.raises(InputError, match="--encoding=.*: not known; expected the name of an encoding"):
            Reading(encoding=name)
    assert read("a\n+2AA-\n", ("a",), encoding="utf-7")[0] == [("\ud800",)]


def test_packed_files(read):
    packed = gzip.compress(b"a,b\n1,2\n") + gzip.compress(b"3,4\n")
    assert read(packed, name="log.csv.gz")[0] == [("1", "2"), ("3", "4")]
    for broken in (packed[:20], packed[:-4], b"a,b\n1,2\n", packed[:15] + b"\xff" * 20):
        with pytest.raises(InputError, match=r"log\.csv\.gz: cannot be read \(.*\); download or write it again"):
            read(broken, name="log.csv.gz")


def test_a_file_that_is_not_there(tmp_path):
    for form in (JSON, CSV, Form("parquet")):
        with pytest.raises(InputError, match="gone: no such file; check --input"):
            list(Rows(tmp_path / "gone", form, ["a"], Reading()))
        with pytest.raises(InputError, match="cannot be read"):
            list(Rows(tmp_path, form, ["a"], Reading()))


def test_what_a_format_makes_of_rows_may_be_faulty(tmp_path):
    (tmp_path / "raw").write_text("a\n1\nx\n3\n")

    def parse(value):
        if value == "x":
            raise RowFault("no x please")
        return int(value)

    faults = Faults(skip=True)
    assert list(Rows(tmp_path / "raw", CSV, ["a"], Reading(faults)).parsed(parse)) == [1, 3]
    assert faults.places == [f"{tmp_path / 'raw'}:3: no x please"]


@pytest.fixture
def parquet(tmp_path):
    """Reads a column of a Parquet file that holds this array."""

    def run(values, kind=None, **options):
        array = values if isinstance(values, pyarrow.Array) else pyarrow.array(values, kind)
        pyarrow.parquet.write_table(pyarrow.table({"other": [0] * len(array), "a": array}), tmp_path / "p", **options)
        return [value for (value,) in Rows(tmp_path / "p", Form("parquet"), ["a"], Reading())]

    return run


def test_parquet(parquet, tmp_path):
    assert parquet([1, None, 3]) == [1, None, 3]
    assert parquet([1.0, None]) == [1.0, None]
    assert parquet(pyarrow.array(["x", "y", "x"]).dictionary_encode()) == ["x", "y", "x"]
    assert parquet([["a", "b"], [], None]) == [["a", "b"], [], None]
    assert parquet([{"Brand": "Nib"}]) == [{"Brand": "Nib"}]
    assert parquet([decimal.Decimal(10**30), None], pyarrow.decimal128(38, 0)) == [10**30, None]
    assert parquet([decimal.Decimal("4.5")], pyarrow.decimal128(3, 1)) == [4.5]
    # Nanoseconds, as pandas writes them, and a time zone that this machine may not know.
    for kind in (pyarrow.timestamp("ns"), pyarrow.timestamp("us"), pyarrow.timestamp("ns", "Mars/Olympus")):
        moment, missing = parquet(pyarrow.array([1_600_000_000_123_456_789, None]).cast(pyarrow.timestamp("ns")).cast(
            kind, safe=False))  # fmt: skip
        assert moment.isoformat().removesuffix("+00:00") == "2020-09-13T12:26:40.123456" and missing is None
    with pytest.raises(InputError, match="p:1: has no column 'b'; its columns are 'other', 'a'"):
        list(Rows(tmp_path / "p", Form("parquet"), ["b"], Reading()))


def test_parquet_that_is_broken(parquet, tmp_path):
    broken = pyarrow.Array.from_buffers(
        pyarrow.string(), 1, [None, pyarrow.py_buffer(b"\0\0\0\0\2\0\0\0"), pyarrow.py_buffer(b"\xff\xff")]
    )
    for values in (broken, pyarrow.array([2**48]).cast(pyarrow.timestamp("s"))):
        with pytest.raises(InputError, match=r"p: cannot be read as Parquet \(.*\); download or write it again"):
            parquet(values)
    content = (tmp_path / "p").read_bytes()
    for part in (b"", b"PAR1", content[:-9], content[: len(content) // 2], b"PAR1" + b"\0" * 100 + content[-200:]):
        (tmp_path / "p").write_bytes(part)
        with pytest.raises(InputError, match=r"p: cannot be read as Parquet \(.*\); download or write it again"):
            list(Rows(tmp_path / "p", Form("parquet"), ["a"], Reading()))
    twice = pyarrow.Table.from_arrays([pyarrow.array([1]), pyarrow.array([2])], ["a", "a"])
    pyarrow.parquet.write_table(twice, tmp_path / "p")
    with pytest.raises(InputError, match="p:1: has two columns 'a'"):
        list(Rows(tmp_path / "p", Form("parquet"), ["a"], Reading()))
