"""One file over HTTP: continued where a connection was cut, begun anew where it has changed on the server.

What has arrived lies under a name of its own, with a file beside it that says which version it is of. urllib stores the
bytes as they are sent; clients that unpack `Content-Encoding: gzip` would unpack .gz files, which servers label so.
"""

import contextlib
import dataclasses
import json
import os
import re
import shutil
import ssl
import time
from collections.abc import Iterator, Sequence
from http.client import HTTPException, HTTPResponse, IncompleteRead, responses
from io import FileIO
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from absl import logging

from idgenrec_jax import __version__
from idgenrec_jax.errors import InputError
from idgenrec_jax.files import explain_write_error, write_json
from idgenrec_jax.progress import Progress, format_bytes

WAITS = (1.0, 4.0, 16.0, 60.0)
"""Seconds before a cut connection is tried again; the count starts anew whenever more has arrived than ever before."""

_TIMEOUT = 60.0  # seconds without a byte
_CHUNK = 1 << 16
# What servers answer that are busy or being restarted.
_PASSING = (408, 425, 429, 500, 502, 503, 504)
_RANGE_NOT_SATISFIABLE = 416


@dataclasses.dataclass(frozen=True)
class Version:
    """Which version of a file a server has sent, in its own words; `length` in bytes, None where it did not say."""

    address: str
    etag: str | None = None
    last_modified: str | None = None
    length: int | None = None

    @property
    def validator(self) -> str | None:
        """What If-Range may name: an ETag that stands for exact bytes, or else the time of the last change."""
        return self.etag if self.etag and not self.etag.startswith("W/") else self.last_modified


class _Changed(Exception):
    """What the server sends does not continue what has arrived."""


def receive(address: str, part: Path, *, remedy: str, waits: Sequence[float] = WAITS) -> Version:
    """Fetch a file into `part`, going on with what is there of the same version; return the version that it has.

    `part` is whole when this returns, as far as the server has said how long it is. It stays where anything goes wrong.
    `remedy` is the way out that the error ends with where trying again does not help.

    Raises:
        InputError: the server cannot be reached, refuses, or cuts the connection again and again without sending more;
            its certificate is not accepted; or the file cannot be written.
    """
    transfer = _Transfer(address, part, remedy)
    furthest, failures = transfer.resumable(), 0
    while True:
        try:
            return transfer.attempt()
        except _Changed:
            reason = "the file on the server has changed"
            transfer.forget()
        except HTTPError as error:
            reason = f"the server answers {error.code} {responses.get(error.code, '')}".rstrip()
            if error.code == _RANGE_NOT_SATISFIABLE and transfer.resumable():
                transfer.forget()
            elif error.code not in _PASSING:
                raise InputError(f"{address}: {reason}, expected the file; {remedy}") from error
        except InputError:
            raise
        # A ValueError is what urllib makes of an address that it was sent on to and that is none.
        except (OSError, HTTPException, ValueError) as error:
            reason = transfer.explain(error)
        arrived = transfer.resumable()
        if arrived > furthest:
            furthest, failures = arrived, 0
        if failures == len(waits):
            again = f"goes on behind the {format_bytes(arrived)} that are there" if arrived else "begins anew"
            raise InputError(f"{address}: {reason}, tried {failures + 1} times; the same command {again}")
        logging.warning("%s: %s; tried again in %g s", address, reason, waits[failures])
        time.sleep(waits[failures])
        failures += 1


def version_file(part: Path) -> Path:
    """Return the file that says which version `part` is of."""
    return part.with_name(f"{part.name}.json")


class _Transfer:
    """The attempts at one file."""

    def __init__(self, address: str, part: Path, remedy: str):
        self._address, self._part, self._remedy = address, part, remedy
        self._answered = False
        self._version = _read_version(version_file(part), address)

    def resumable(self) -> int:
        """Return how many bytes have arrived that the server can be asked to continue."""
        if self._version is None or self._version.validator is None or not self._part.is_file():
            return 0
        return self._part.stat().st_size

    def forget(self) -> None:
        """Begin anew with the next attempt, whatever has arrived."""
        self._version = None

    def attempt(self) -> Version:
        """Ask for what is missing; return when all has arrived."""
        offset = self.resumable()
        if self._version is not None and offset and offset == self._version.length:
            return self._version
        headers = {"User-Agent": f"idgenrec-jax/{__version__}"}
        if offset and self._version is not None:
            headers |= {"Range": f"bytes={offset}-", "If-Range": str(self._version.validator)}
        with urlopen(Request(self._address, headers=headers), timeout=_TIMEOUT) as response:
            self._answered = True
            if self._address.startswith("https:") and not response.url.startswith("https:"):
                raise InputError(f"{self._address}: leads to {response.url}, expected https; {self._remedy}")
            if response.status not in (200, 206):
                raise HTTPError(self._address, response.status, "", response.headers, None)
            self._version = self._version_of(response, offset)
            return self._store(response, offset if response.status == 206 else 0, self._version)

    def explain(self, error: Exception) -> str:
        """Return why a connection failed.

        Raises:
            InputError: another attempt would fail in the same way.
        """
        cause = error.reason if isinstance(error, URLError) and isinstance(error.reason, Exception) else error
        if isinstance(cause, ssl.SSLCertVerificationError):
            raise InputError(
                f"{self._address}: its certificate is not accepted ({cause.verify_message}); check the clock of this "
                f"machine, name your network's certificates by SSL_CERT_FILE, or {self._remedy}"
            ) from error
        text = " ".join((getattr(cause, "strerror", None) or str(cause) or type(cause).__name__).split())
        # Without an answer ever, there is no network, or none to this server.
        if isinstance(error, URLError) and not self._answered:
            raise InputError(
                f"{self._address}: cannot be reached ({text}); check the network (HTTPS_PROXY names a proxy), then run "
                f"the same command again, or {self._remedy}"
            ) from error
        cut = isinstance(error, (OSError, IncompleteRead))
        return f"the connection was cut ({text})" if cut else f"the answer is no HTTP ({text})"

    def _version_of(self, response: HTTPResponse, offset: int) -> Version:
        """Return the version that is being sent; raise _Changed where it does not continue that of the part."""
        headers = response.headers
        version = Version(self._address, _told(headers["ETag"]), _told(headers["Last-Modified"]), response.length)
        if response.status == 200:
            return version
        sent = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", (headers["Content-Range"] or "").strip())
        if sent is None or int(sent[1]) != offset or self._version is None:
            raise _Changed
        version = dataclasses.replace(version, length=None if sent[2] == "*" else int(sent[2]))
        # Some servers do not look at If-Range.
        for name in ("etag", "last_modified", "length"):
            told, known = getattr(version, name), getattr(self._version, name)
            if told is not None and known is not None and told != known:
                raise _Changed
        return dataclasses.replace(self._version, length=self._version.length or version.length)

    def _store(self, response: HTTPResponse, offset: int, version: Version) -> Version:
        """Append what arrives to the first `offset` bytes of the part."""
        free, missing = shutil.disk_usage(self._part.parent).free, response.length or 0
        if missing > free:
            raise InputError(
                f"{self._part}: {format_bytes(missing)} are to come, and the disk has {format_bytes(free)} free; free "
                "some and run the same command again"
            )
        done, note = offset, "not whole"
        progress = Progress(self._part.name.removesuffix(".part"), version.length or 0, "byte", done=offset)
        try:
            with self._open(offset, version) as file:
                while chunk := response.read(_CHUNK):
                    with _explained(self._part):
                        _write(file, chunk)
                    done += len(chunk)
                    progress.update(done)
                with _explained(self._part):
                    os.fsync(file.fileno())
            if version.length is not None and done < version.length:
                raise ConnectionError(f"{done} of {version.length} bytes have come")
            note = ""
        finally:
            progress.close(note)
        return version

    def _open(self, offset: int, version: Version) -> FileIO:
        with _explained(self._part):
            if offset == 0:
                # In this order: whenever this is killed, no part is taken for one of another version.
                self._part.unlink(missing_ok=True)
                write_json(version_file(self._part), dataclasses.asdict(version))
            # Without a buffer: closing a file that could not be written would try again, and fail as if it were new.
            return open(self._part, "ab", buffering=0)


def _told(value: str | None) -> str | None:
    """Return the value of a header where it can be sent back; None where a line break is in it."""
    return value if value and value.isprintable() else None


def _write(file: FileIO, chunk: bytes) -> None:
    view = memoryview(chunk)
    while view:
        view = view[file.write(view) :]


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Tell what is wrong with the disk from what is wrong with the connection: Python has one exception for both."""
    try:
        yield
    except OSError as error:
        raise explain_write_error(error, path) from error


def _read_version(path: Path, address: str) -> Version | None:
    """Return the version that a file names; None where there is none of this address."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        version = Version(**json.loads(path.read_text(encoding="utf-8")))
        return version if version.address == address else None
    return None
