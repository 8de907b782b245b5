"""Reading line files: every fault names its file and line."""

import gzip

import pytest

from idgenrec_jax.data.lines import read_lines
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
    for path in (tmp_path, broken, fake):
        with pytest.raises(InputError) as caught:
            list(read_lines(path, "fill it"))
        message = str(caught.value)
        assert message.startswith(f"{path}: cannot be read (") and "None" not in message and "\n" not in message
