"""Atomic writing and the messages of files that cannot be written or read."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from idgenrec_jax.errors import InputError
from idgenrec_jax.files import (
    atomic_folder,
    atomic_writer,
    clear_leftovers,
    expand_home,
    explain_lock_error,
    explain_write_error,
    is_disk_full,
    read_json,
    write_json,
)


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


def test_a_folder_appears_only_when_its_block_ends(tmp_path):
    with pytest.raises(KeyError, match="reason"), atomic_folder(tmp_path / "new" / "out") as folder:
        (folder / "half").mkdir()
        raise KeyError("reason")
    with atomic_folder(tmp_path / "new" / "out") as folder:
        write_json(folder / "part" / "file.json", [1])
        assert not (tmp_path / "new" / "out").exists()
    assert os.listdir(tmp_path / "new") == ["out"] and read_json(tmp_path / "new/out/part/file.json", remedy="") == [1]
    with pytest.raises(InputError, match="out: exists already"), atomic_folder(tmp_path / "new" / "out"):
        pass
    with pytest.raises(KeyError, match="reason"), atomic_folder(tmp_path / "new" / "out", replaces=True):
        raise KeyError("reason")
    assert read_json(tmp_path / "new/out/part/file.json", remedy="") == [1]
    with atomic_folder(tmp_path / "new" / "out", replaces=True) as folder:
        write_json(folder / "other.json", [2])
    assert os.listdir(tmp_path / "new") == ["out"] and os.listdir(tmp_path / "new" / "out") == ["other.json"]


def test_a_folder_that_another_program_makes_meanwhile_stays_and_an_empty_one_gives_way(tmp_path):
    (tmp_path / "out").mkdir()
    with atomic_folder(tmp_path / "out") as folder:
        write_json(folder / "file.json", [1])
    assert read_json(tmp_path / "out" / "file.json", remedy="") == [1]
    with pytest.raises(InputError, match="other: exists already"), atomic_folder(tmp_path / "other") as mine:
        write_json(mine / "file.json", [1])
        write_json(tmp_path / "other" / "file.json", [2])
    assert sorted(os.listdir(tmp_path)) == ["other", "out"]
    assert read_json(tmp_path / "other" / "file.json", remedy="") == [2]


KILLED = """
import os, signal, sys
from pathlib import Path
from idgenrec_jax.files import atomic_folder, atomic_writer
with atomic_folder(Path(sys.argv[1]) / "out") as folder, atomic_writer(Path(sys.argv[1]) / "file.txt") as file:
    (folder / "part").mkdir()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_program_left_goes_when_the_same_is_written_again_and_what_is_being_written_stays(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], env=environment, check=False)
    left = os.listdir(tmp_path)
    assert killed.returncode == -signal.SIGKILL and len(left) == 2 and all(name.endswith(".tmp") for name in left)
    (tmp_path / ".out.other.tmp").touch()
    with atomic_folder(tmp_path / "out") as mine, atomic_writer(tmp_path / "file.txt") as file:
        # As another program, or another thread, would that writes the same.
        clear_leftovers(tmp_path)
        with atomic_writer(tmp_path / "file.txt") as other:
            other.write("other")
        assert mine.is_dir()
        file.write("mine")
    assert sorted(os.listdir(tmp_path)) == [".out.other.tmp", "file.txt", "out"]
    assert (tmp_path / "file.txt").read_text() == "mine"


def test_a_leading_tilde_is_the_home_folder_wherever_a_file_is_written_or_read(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    write_json("~/file.json", [1])
    with atomic_folder("~/folder"):
        pass
    assert read_json("~/file.json", remedy="") == [1]
    assert os.listdir(tmp_path) == ["home"] and sorted(os.listdir("home")) == ["file.json", "folder"]
    assert expand_home("t5-small") == "t5-small" and expand_home("a/~/b") == "a/~/b"


def test_a_file_system_without_locks_is_named():
    message = str(explain_lock_error(OSError(errno.ENOLCK, "No locks available"), "a/lock"))
    assert message.startswith("a/lock: its file system has no locks (No locks available)")
    assert "name a folder on a file system that has them" in message
    assert "with write permission" in str(explain_lock_error(OSError(errno.EACCES, "Permission denied"), "a/lock"))


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
    assert str(explain_write_error(OSError("two\nlines"), "a/b")).startswith("a/b: cannot be written (two lines);")


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
        (b"[" * 100_000, "expected a JSON document, found one nested too deeply"),
        (b'{"loss": NaN}', "expected a JSON document"),
        (b"[1, -Infinity]", "expected a JSON document"),
        (b'["\\ud800"]', "expected a JSON document"),
        (b"9" * 5000, "expected a JSON document"),
    ],
)
def test_read_json_names_file_reason_and_remedy(tmp_path, content, reason):
    path = tmp_path / "file.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=rf"^{path}: {reason}.*; make it again$") as caught:
        read_json(path, remedy="make it again")
    assert "\n" not in str(caught.value)
