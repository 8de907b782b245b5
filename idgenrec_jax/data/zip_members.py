"""Files taken out of a zip archive: those asked for by name, whole or not at all, and no more than the disk holds."""

import shutil
import stat
import struct
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from idgenrec_jax.errors import InputError
from idgenrec_jax.files import atomic_folder
from idgenrec_jax.progress import Progress, format_bytes

# Text of ratings shrinks to a third or a tenth; archives that are made to fill a disk, to less than a thousandth.
_MOST_EXPANSION = 100
_ENCRYPTED = 1
_CHUNK = 1 << 20
_SHOWN = 5


def unpack(archive: Path, members: Sequence[str], folder: Path, *, remedy: str) -> list[Path]:
    """Unpack members into `folder`, under the names that they have; return these paths.

    All lie in one folder of the archive, as "NAME/FILE", which appears whole or not at all. Where it is there already,
    its files are compared with the archive by size and CRC-32. Names that the archive gives are not used, so nothing
    is written elsewhere.

    Raises:
        InputError: the archive is broken, lacks a member, holds a link in its place or unpacks to far more than its own
            size; the disk has no room; or a file that is there already differs. `remedy` is the way out from a bad
            archive.
    """
    [name] = {member.partition("/")[0] for member in members}
    paths = [folder / member for member in members]
    try:
        with zipfile.ZipFile(archive) as file:
            found = [_member(file, member, archive, remedy) for member in members]
            if (folder / name).exists():
                for path, member in zip(paths, found, strict=True):
                    _compare(path, member, archive)
                return paths
            total = _check_size(archive, folder, found, remedy)
            progress = Progress(f"unpacking {archive.name}", total, "byte")
            done = 0
            with atomic_folder(folder / name) as temporary:
                for path, member in zip(paths, found, strict=True):
                    with file.open(member) as source, open(temporary / path.name, "wb") as target:
                        while chunk := source.read(_CHUNK):
                            target.write(chunk)
                            done += len(chunk)
                            progress.update(done)
            progress.close()
    except InputError:
        raise
    # What Python's readers of the archive's directory and of deflate raise.
    except (zipfile.BadZipFile, NotImplementedError, zlib.error, struct.error, EOFError, ValueError) as error:
        raise InputError(f"{archive}: not a zip archive that can be unpacked ({error}); {remedy}") from error
    except OSError as error:
        raise InputError(f"{archive}: cannot be read ({error.strerror}); {remedy}") from error
    return paths


def _member(file: zipfile.ZipFile, name: str, archive: Path, remedy: str) -> zipfile.ZipInfo:
    try:
        member = file.getinfo(name)
    except KeyError as error:
        names = ", ".join(repr(name[:60]) for name in file.namelist()[:_SHOWN])
        raise InputError(f"{archive}: has no {name}, found {names or 'nothing'}; {remedy}") from error
    if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG):
        raise InputError(f"{archive}: {name} is a link or a device, expected a file; {remedy}")
    if member.flag_bits & _ENCRYPTED or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise InputError(f"{archive}: {name} is encrypted or not packed by deflate, expected a plain file; {remedy}")
    return member


def _check_size(archive: Path, folder: Path, members: list[zipfile.ZipInfo], remedy: str) -> int:
    """Return the bytes that members unpack to. zipfile never reads more of a member than its entry says."""
    total, packed = sum(member.file_size for member in members), archive.stat().st_size
    if total > _MOST_EXPANSION * packed:
        raise InputError(
            f"{archive}: its {format_bytes(packed)} unpack to {format_bytes(total)}, expected at most "
            f"{_MOST_EXPANSION} times as much; {remedy}"
        )
    free = shutil.disk_usage(folder).free
    if total > free:
        raise InputError(
            f"{folder}: {archive.name} unpacks to {format_bytes(total)}, and the disk has {format_bytes(free)} free; "
            "free some and run the same command again"
        )
    return total


def _compare(path: Path, member: zipfile.ZipInfo, archive: Path) -> None:
    problem = "is missing"
    if path.is_file():
        with open(path, "rb") as file:
            same = path.stat().st_size == member.file_size and _crc(file) == member.CRC
        if same:
            return
        problem = "differs from that in the archive"
    raise InputError(f"{path}: {problem} {archive}; delete {path.parent} to have it unpacked again")


def _crc(file: IO[bytes]) -> int:
    crc = 0
    while chunk := file.read(_CHUNK):
        crc = zlib.crc32(chunk, crc)
    return crc
