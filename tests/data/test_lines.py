"""Reading line files: every fault names its file and line."""

import gzip

import pytest

from idgenrec_jax.data.lines import holds_surrogate, leaves, named, parse_json, read_lines, shown
from idgenrec_jax.errors import InputError


def test_numbers_count_blank_lines_and_windows_line_ends_are_dropped(tmp_path):
    path = tmp_path / "file.txt"
    path.write_bytes("\ufeffone\r\n\r\n  trois é \r\nfour".encode())
    assert list(read_lines(path, "fill it")) == [(1, "one"), (3, "trois é"), (4, "four")]


def test_gzip_is_unpacked(tmp_path):
    path = tmp_path / "file.txt.gz"
    path.write_bytes(gzip.compress(b"a\nb\n"))
    assert [text for _, text in read_lines(path, "fill it")] == ["a", "b"]


@pytest.mark.parametrize("content", [b"", b"\n  \n"])
def test_empty_file_is_an_error_with_the_remedy(tmp_path, content):
    path = tmp_path / "file.txt"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        list(read_lines(path, "write one line a user"))
    assert str(caught.value) == f"{path}: the file is empty; write one line a user"


def test_missing_file_is_an_error_with_the_remedy(tmp_path):
    with pytest.raises(InputError) as caught:
        list(read_lines(tmp_path / "none.txt", "write one line a user"))
    assert str(caught.value) == f"{tmp_path / 'none.txt'}: no such file; write one line a user"


def test_bytes_that_are_not_utf8_name_the_line_and_the_position(tmp_path):
    path = tmp_path / "file.txt"
    path.write_bytes(b"fine\ncaf\xe9\n")
    with pytest.raises(InputError) as caught:
        list(read_lines(path, "fill it"))
    assert str(caught.value) == f"{path}:2: not UTF-8 text (byte 0xe9 at position 4); save the file as UTF-8"


def test_a_folder_or_a_truncated_gzip_file_is_an_error_in_one_line(tmp_path):
    broken = tmp_path / "broken.gz"
    broken.write_bytes(gzip.compress(b"text " * 1000)[:-10])
    fake = tmp_path / "fake.gz"
    fake.write_bytes(b"not gzip")
    damaged = tmp_path / "damaged.gz"
    packed = bytearray(gzip.compress(b"text " * 1000))
    packed[12] ^= 0xFF
    damaged.write_bytes(packed)
    for path in (tmp_path, broken, fake, damaged):
        with pytest.raises(InputError) as caught:
            list(read_lines(path, "fill it"))
        message = str(caught.value)
        assert message.startswith(f"{path}: cannot be read (") and "None" not in message and "\n" not in message


def test_json_that_cannot_be_read_is_an_error_in_one_line():
    assert parse_json('{"a": [1, null]}', "file:3", "mend it") == {"a": [1, None]}
    for text, reason in (
        ("{", "Expecting property name"),
        ("[" * 100_000, "nested too deeply"),
        ("9" * 5000, "Exceeds"),
    ):
        with pytest.raises(InputError) as caught:
            parse_json(text, "file:3", "mend it")
        message = str(caught.value)
        assert message.startswith(f"file:3: not a JSON object ({reason}") and message.endswith("; mend it")


def test_leaves_come_in_order_however_deep():
    assert list(leaves([[1, ["a"]], [], [None, [2.5]]])) == [1, "a", None, 2.5] and list(leaves("x")) == ["x"]
    deep = "x"
    for _ in range(100_000):
        deep = [deep]
    assert list(leaves(deep)) == ["x"]


def test_values_are_shown_on_one_short_line():
    assert shown("a\nb\ud800") == r"'a\nb\ud800'"
    assert shown("x" * 100) == "'" + "x" * 56 + "..."
    assert shown(16**10_000) == "a int too large to show"
    deep = []
    for _ in range(100_000):
        deep = [deep]
    assert shown(deep) == "a list too large to show"


def test_keys_are_named_as_they_are_unless_long_or_odd():
    assert [named("B00é"), named("a\x1b"), named("x" * 61)] == ["B00é", r"'a\x1b'", "'" + "x" * 56 + "..."]


def test_half_a_surrogate_pair_is_found():
    assert holds_surrogate("a\ud800") and holds_surrogate("\udfff") and not holds_surrogate("é\U0001f600\ufffd")
