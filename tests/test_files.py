"""Atomic writing and the messages of files that cannot be written or read."""

import errno
import os
import subprocess

import pytest

from idgenrec_jax.errors import InputError
from idgenrec_jax.files import atomic_writer, explain_write_error, is_disk_full, read_json, write_json


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 KiB in memory, where mounting is allowed."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a small file system needs privileges that this machine does not give")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_file_appears_only_when_its_block_ends(tmp_path):
    path = tmp_path / "new" / "folder" / "file.txt"
    with atomic_writer(path) as file:
        file.write("Größe\n")
        file.flush()
        assert not path.exists()
    assert path.read_bytes() == "Größe\n".encode()
    assert os.listdir(path.parent) == ["file.txt"]


def test_a_failing_block_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old", encoding="utf-8")
    with pytest.raises(KeyError, match="reason"), atomic_writer(path) as file:
        file.write("half of the n")
        raise KeyError("reason")
    assert path.read_text(encoding="utf-8") == "old"
    assert os.listdir(tmp_path) == ["file.txt"]


def test_a_full_disk_leaves_the_old_file_and_says_so(small_disk):
    path = small_disk / "file.json"
    write_json(path, {"kept": 1})
    with pytest.raises(InputError, match=rf"^{path}: no space left on the disk; free some") as caught:
        write_json(path, ["x" * 1000] * 100)
    assert "\n" not in str(caught.value)
    assert read_json(path, remedy="") == {"kept": 1}
    assert os.listdir(small_disk) == ["file.json"]


def test_a_full_device_is_recognised_also_behind_another_error():
    with pytest.raises(OSError) as caught, open("/dev/full", "w", encoding="utf-8") as device:
        device.write("x")
        device.flush()
    assert caught.value.errno == errno.ENOSPC and is_disk_full(caught.value)
    try:
        raise RuntimeError("a library gave up") from caught.value
    except RuntimeError as error:
        assert is_disk_full(error)
    assert is_disk_full(ValueError("RESOURCE_EXHAUSTED: ... No space left on device [os_error_code='28']"))
    assert not is_disk_full(OSError(errno.EACCES, "Permission denied"))
    assert "no space left on the disk" in str(explain_write_error(caught.value, "a/b"))


def test_a_folder_that_is_a_file_is_named(tmp_path):
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(InputError, match=r"file/inner\.json: cannot be written \(.*\); expected a folder"):
        write_json(tmp_path / "file" / "inner.json", {})


def test_a_name_that_is_too_long_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match=r"cannot be written \(File name too long\)"):
        write_json(tmp_path / ("x" * 255), {})


def test_json_round_trip_keeps_text_readable(tmp_path):
    value = {"name": "Größe", "values": [1, 2.5, None, True]}
    write_json(tmp_path / "file.json", value)
    assert read_json(tmp_path / "file.json", remedy="") == value
    assert "Größe" in (tmp_path / "file.json").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, r"cannot be read \(No such file or directory\)"),
        (b"", "expected a JSON document"),
        (b'{"a": ', "expected a JSON document"),
        (b"\xff\xfe\x00", "expected a JSON document"),
    ],
)
def test_read_json_names_file_reason_and_remedy(tmp_path, content, reason):
    path = tmp_path / "file.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=rf"^{path}: {reason}.*; make it again$") as caught:
        read_json(path, remedy="make it again")
    assert "\n" not in str(caught.value)
