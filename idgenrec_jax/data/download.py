"""Raw data from where its publishers keep it: fetched only when asked for, compared with a checksum, unpacked.

A folder of downloads holds the files under their publishers' names and `download.json`, which says of each where it is
from, its SHA-256 and what it was compared with.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from absl import logging

from idgenrec_jax.data.http_file import WAITS, Version, receive, version_file
from idgenrec_jax.data.zip_members import unpack
from idgenrec_jax.errors import InputError
from idgenrec_jax.files import expand_home, explain_lock_error, explain_write_error, write_json
from idgenrec_jax.locks import holder, lock_file, note_holder
from idgenrec_jax.progress import Progress

RECORD = "download.json"
_LOCK = ".download.lock"
_CHUNK = 1 << 20
# How files begin that are what their names say. What stands in their place is mostly the page of a network that asks
# for a login, sent as if it were the file.
_BEGINNINGS = {".gz": b"\x1f\x8b", ".zip": b"PK"}


@dataclasses.dataclass(frozen=True)
class RemoteFile:
    """A file at its publisher's.

    `md5` is the sum that the publisher gives. Where the file changes over time, `md5_address` has the sum of the
    present one. `members` are the files that a zip archive is fetched for.
    """

    address: str
    name: str
    md5: str | None = None
    md5_address: str | None = None
    members: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Download:
    """Raw data under one name: `source` is the format that reads it, `page` where the publisher describes it."""

    name: str
    source: str
    files: tuple[RemoteFile, ...]
    page: str
    licence: str


def fetch(download: Download, folder: str | Path, *, waits: Sequence[float] = WAITS) -> list[Path]:
    """Fetch what is not in `folder` yet, and return the paths of the raw files, unpacked where they come in a zip.

    What is there is read whole and compared with its checksum, each time. Several processes may fetch into one folder:
    one does it, the others wait. `waits` are the seconds between attempts at a cut connection.

    Raises:
        InputError: a file cannot be fetched, written or unpacked, or is not the one that the checksum is of.
    """
    folder = Path(expand_home(folder))
    with _alone_in(folder):
        return [path for file in download.files for path in _fetch_file(file, folder, download, waits)]


def read_record(folder: str | Path) -> dict[str, dict[str, Any]]:
    """Return what `download.json` says of each file of a folder of downloads, by its name; nothing where there is none.

    Of a file: "address", "bytes", "sha256", "compared_with" (the publisher's sum, or None), "etag", "last_modified" and
    "fetched" (UTC).
    """
    with contextlib.suppress(OSError, ValueError):
        record = json.loads((Path(expand_home(folder)) / RECORD).read_text(encoding="utf-8"))
        if isinstance(record, dict) and all(isinstance(value, dict) for value in record.values()):
            return record
    return {}


def _fetch_file(file: RemoteFile, folder: Path, download: Download, waits: Sequence[float]) -> list[Path]:
    path = folder / file.name
    remedy = f"get it by hand ({download.page}), and name its folder with --input, without --download"
    if path.exists():
        _check_present(path, file)
    else:
        _receive_file(path, file, remedy, waits)
    if not file.members:
        return [path]
    return unpack(path, file.members, folder, remedy=f"delete it to have it fetched anew, or {remedy}")


def _receive_file(path: Path, file: RemoteFile, remedy: str, waits: Sequence[float]) -> None:
    """Fetch a file that is not there; it gets its name when it has been compared."""
    part = path.with_name(f"{path.name}.part")
    version = receive(file.address, part, remedy=remedy, waits=waits)
    _check_beginning(part, file, remedy)
    expected = file.md5
    if file.md5_address is not None:
        expected = _published_md5(file.md5_address, path, remedy, waits)
    sha256, md5 = _sums(part)
    if expected is not None and md5 != expected:
        _drop(part)
        raise InputError(
            f"{file.address}: what came has the MD5 {md5}, expected {expected}, and was deleted; run the same command "
            f"again, or {remedy}"
        )
    # Before the file has its name: a file that is in no record is not from here.
    _record(path, part.stat().st_size, sha256, expected, version)
    try:
        os.replace(part, path)
        version_file(part).unlink(missing_ok=True)
    except OSError as error:
        raise explain_write_error(error, path) from error
    if expected is None:
        logging.warning(
            "%s: SHA-256 %s; its publisher gives no checksum, so it was compared with nothing", path, sha256
        )
    else:
        logging.info("%s: MD5 %s, as its publisher gives it; SHA-256 %s", path, md5, sha256)


def _check_present(path: Path, file: RemoteFile) -> None:
    """Compare a file that is there with the publisher's sum, and with what it was when it was fetched."""
    record = read_record(path.parent).get(path.name, {})
    known, address = record.get("sha256"), record.get("address", file.address)
    # The metadata of one category have one name in several years.
    if address != file.address:
        raise InputError(f"{path}: is from {address}, expected that from {file.address}; name another folder")
    if known is None and file.md5 is None:
        raise InputError(
            f"{path}: exists already, and {RECORD} does not say that it was downloaded, so nothing tells whether it is "
            "whole; leave out --download to use it, or delete it to have it fetched"
        )
    sha256, md5 = _sums(path)
    for found, expected in ((sha256, known), (md5, file.md5)):
        if expected is not None and found != expected:
            raise InputError(
                f"{path}: has the checksum {found}, expected {expected}, so it has changed or is not whole; delete it "
                "to have it fetched anew"
            )
    logging.info("%s: is there already, with the right checksum", path)


def _published_md5(address: str, path: Path, remedy: str, waits: Sequence[float]) -> str:
    """Return the MD5 of a file from the one that its publisher keeps beside it, in the form of md5 or of md5sum."""
    part = path.with_name(f"{path.name}.md5.part")
    _drop(part)  # Of an earlier time, when the file may have been another.
    receive(address, part, remedy=remedy, waits=waits)
    text = part.read_bytes()[: 1 << 12].decode("utf-8", errors="replace")
    _drop(part)
    found = re.findall(r"(?<![0-9a-fA-F])[0-9a-fA-F]{32}(?![0-9a-fA-F])", text)
    if len(found) != 1:
        raise InputError(f"{address}: found {text[:60]!r}, expected one MD5; run the same command again, or {remedy}")
    return found[0].lower()


def _check_beginning(part: Path, file: RemoteFile, remedy: str) -> None:
    expected = _BEGINNINGS.get(Path(file.name).suffix, b"")
    with open(part, "rb") as opened:
        found = opened.read(40)
    if not found.startswith(expected):
        _drop(part)
        raise InputError(
            f"{file.address}: what came begins with {found!r}, expected a {Path(file.name).suffix} file, and was "
            f"deleted; see what a browser shows at this address, then run the same command again, or {remedy}"
        )


def _drop(part: Path) -> None:
    try:
        part.unlink(missing_ok=True)
        version_file(part).unlink(missing_ok=True)
    except OSError as error:
        raise explain_write_error(error, part) from error


def _sums(path: Path) -> tuple[str, str]:
    """Return the SHA-256 and the MD5 of a file, which is read once."""
    sha256, md5, done = hashlib.sha256(), hashlib.md5(usedforsecurity=False), 0
    try:
        progress = Progress(f"checking {path.name.removesuffix('.part')}", path.stat().st_size, "byte")
        with open(path, "rb") as file:
            while chunk := file.read(_CHUNK):
                sha256.update(chunk)
                md5.update(chunk)
                done += len(chunk)
                progress.update(done)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the file and its permissions") from error
    progress.close()
    return sha256.hexdigest(), md5.hexdigest()


def _record(path: Path, size: int, sha256: str, md5: str | None, version: Version) -> None:
    entry = {
        "address": version.address,
        "bytes": size,
        "sha256": sha256,
        "compared_with": None if md5 is None else f"MD5 {md5}",
        "etag": version.etag,
        "last_modified": version.last_modified,
        "fetched": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    write_json(path.with_name(RECORD), read_record(path.parent) | {path.name: entry})


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Hold a folder, which is made where it is missing; wait for another process that holds it."""
    path = folder / _LOCK
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = lock_file(path, wait=False)
        if descriptor is None:
            logging.warning("%s: waits for the download of %s", folder, holder(path))
            descriptor = lock_file(path, wait=True)
        note_holder(descriptor, os.getpid())
    except OSError as error:
        raise explain_lock_error(error, path) from error
    try:
        yield
    finally:
        os.close(descriptor)
