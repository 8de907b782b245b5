"""What a raw file looks like from its first lines: its kind, its separator, its fields."""

import codecs
import csv
import gzip
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from idgenrec_jax.data.lines import named
from idgenrec_jax.data.sources.rows import UTF_16_MARKS, plain_values, read_record
from idgenrec_jax.data.sources.values import RowFault
from idgenrec_jax.errors import InputError

_SEEN_BYTES = 2**17
_LONGEST_LINE = 2**24
_REMEDY = "name the raw files or their folder, unpacked from archives"
_SEEN_ROWS = 30
_SEPARATORS = ("\t", "::", ",", "|", ";")
_BY_NAME = ("readme", "license", "licence", "changelog", "checksum", "md5", "download.json")
_OTHER_ENDINGS = (
    ".md", ".md5", ".pdf", ".html", ".png", ".jpg", ".py", ".sh", ".zip", ".tar", ".npy", ".pt", ".pkl",
    ".part", ".part.json",
)  # fmt: skip


@dataclass(frozen=True)
class RawFile:
    """A file and what its beginning shows.

    - `kind` is "json" (an object a line), "document" (one JSON value over many lines), "csv" (values separated by
      `separator`), "parquet", "lines" (anything else that is text), "binary" (no text, as archives) or "empty".
    - `fields` are the names of an object's fields, of a Parquet file's columns, or the cells of the first line.
    - `rows` are the first lines of a "csv" as cells, its header among them, or of a "document" or "lines", split at
      blanks.
    - `records` are the first objects of a "json", or the first rows of a "parquet".
    - `encoding` is "latin-1" where the beginning is not UTF-8 nor UTF-16: nearly everything else is near to that.
    """

    path: Path
    kind: str
    fields: tuple[str, ...] = ()
    separator: str = ""
    rows: tuple[tuple[str, ...], ...] = ()
    records: tuple[dict, ...] = ()
    encoding: str = "utf-8"

    @property
    def name(self) -> str:
        """The name of the file without .gz."""
        return self.path.name.removesuffix(".gz")

    def has(self, *fields: str) -> bool:
        """Tell whether the file has all of these fields."""
        return set(fields) <= set(self.fields)

    @property
    def width(self) -> int:
        """How many columns most lines of a "csv" have: some may be faulty."""
        return Counter(map(len, self.rows)).most_common(1)[0][0] if self.kind == "csv" else 0

    @property
    def regular_rows(self) -> tuple[tuple[str, ...], ...]:
        """The rows that have as many columns as most."""
        return tuple(row for row in self.rows if len(row) == self.width)

    def describe(self) -> str:
        """Return the file in a few words: its name, its kind and its first fields."""
        shown = ", ".join(named(name[:30]) for name in self.fields[:12])
        what = {
            "json": f"JSON lines with {shown}",
            "parquet": f"Parquet with {shown}",
            "csv": f"values separated by {self.separator!r}: {shown}",
            "document": "one JSON document",
            "lines": f"text: {shown}",
            "binary": "packed or binary: unpack it first",
            "empty": "empty",
        }[self.kind]
        return f"{self.path.name} ({what[:240]})"


def find_files(paths: Sequence[str | Path], encoding: str = "") -> list[RawFile]:
    """Return the raw files that --input names, sniffed: files, and what lies in folders (read-me files left out).

    Of a folder that holds only folders, these are searched. A file that is named twice is one.

    Raises:
        InputError: a path is missing or cannot be read, or there is no file at all.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        try:
            found += _files_in(path) if path.is_dir() else [path]
            for file in found:
                file.open("rb").close()
        except FileNotFoundError as error:
            raise InputError(f"--input={path}: no such file or folder; {_REMEDY}") from error
        except (OSError, ValueError) as error:  # No permission, a name too long, or one with a null character.
            reason = getattr(error, "strerror", None) or str(error)
            raise InputError(f"--input={path}: cannot be read ({reason}); {_REMEDY}") from error
    if not found:
        raise InputError(f"--input={paths[0]}: holds no file; {_REMEDY}")
    return [sniff(path, encoding) for path in dict.fromkeys(found)]


def _files_in(folder: Path) -> list[Path]:
    inside = sorted(path for path in folder.iterdir() if not path.name.startswith((".", "__")))
    files = [path for path in inside if path.is_file() and not _is_beside(path)]
    folders = [path for path in inside if path.is_dir()]
    if not files:
        return [file for folder in folders for file in _files_in(folder)]
    return files


def _is_beside(path: Path) -> bool:
    name = path.name.lower()
    return name.startswith(_BY_NAME) or name.endswith(_OTHER_ENDINGS)


def sniff(path: Path, encoding: str = "", separator: str = "") -> RawFile:
    """Return a file with what its beginning shows, in this encoding and split at this separator where they are given.

    Raises:
        InputError: it cannot be read.
    """
    if path.suffix in (".parquet", ".pq"):
        return _sniff_parquet(path)
    start, is_whole, encoding = _beginning(path, encoding)
    if "\0" in start:
        return RawFile(path, "binary")
    lines = [line.rstrip("\r") for line in start.split("\n") if line.strip()]
    if not is_whole and len(lines) > 1:
        lines = lines[:-1]  # It may be cut.
    lines = lines[:_SEEN_ROWS]
    if not lines:
        return RawFile(path, "empty")
    if not separator and lines[0].lstrip().startswith(("{", "[")):
        records = _records(lines)
        if len(records) * 2 > len(lines) and (len(lines) > 1 or not _is_document(records[0])):
            names = dict.fromkeys(str(name) for record in records for name in record)
            return RawFile(path, "json", tuple(names), records=tuple(records))
        return RawFile(path, "document", rows=tuple(tuple(line.split()) for line in lines))
    separator, rows = _split(lines, (separator,) if separator else _SEPARATORS)
    if separator:
        fields = tuple(cell.strip() for cell in rows[0])
        return RawFile(path, "csv", fields, separator, tuple(map(tuple, rows)), encoding=encoding)
    words = tuple(tuple(line.split()) for line in lines)
    return RawFile(path, "lines", words[0], rows=words, encoding=encoding)


def _is_document(record: dict) -> bool:
    """A file of one object whose values are mostly lists, or mostly objects, says something of each of its keys."""
    kinds = [type(value) for value in record.values()]
    return 2 * max(kinds.count(list), kinds.count(dict)) > len(kinds)


def _records(lines: list[str]) -> list[dict]:
    records = []
    for line in lines:
        try:
            records.append(read_record(line))
        except RowFault:
            continue
    return records


def _split(lines: list[str], separators: Sequence[str]) -> tuple[str, list[list[str]]]:
    """The separator that most lines have equally often, and the lines split at it."""
    best: tuple[float, str, list[list[str]]] = (0.0, "", [])
    for separator in separators:
        readings = [[_cells(line, separator) for line in lines]]
        if len(separator) == 1 and any('"' in line for line in lines):
            # Quoted cells may go over several lines; the last of them may be cut.
            rows = _rows(lines, separator)
            readings.append(rows[:-1] or rows)
        for rows in readings:
            widths = [len(row) for row in rows]
            common = max(widths, key=widths.count)
            share = widths.count(common) / len(widths)
            if common > 1 and share >= 0.5 and share > best[0]:
                best = share, separator, rows
    return best[1], best[2]


def _rows(lines: list[str], separator: str) -> list[list[str]]:
    try:
        return list(csv.reader([line + "\n" for line in lines], delimiter=separator))
    except csv.Error:
        return [lines]


def _cells(line: str, separator: str) -> list[str]:
    # A quote is a letter like any other in most tables with tabs or bars.
    if separator not in (",", ";") or '"' not in line:
        return line.split(separator)
    try:
        return next(csv.reader([line], delimiter=separator))
    except csv.Error:
        return line.split(separator)


def _beginning(path: Path, encoding: str) -> tuple[str, bool, str]:
    """The first lines of a file, the last of which may be cut; whether they are all that it has; its encoding."""
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as file:
            # The first line is seen whole: a user's whole history can stand on it.
            start = file.readline(_LONGEST_LINE)
            start += file.read(_SEEN_BYTES)
            is_whole = not file.read(1)
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{path}: cannot be read ({reason}); download or write it again") from error
    if not encoding and start.startswith(UTF_16_MARKS):
        encoding = "utf-16"
    if encoding:
        return start.decode(encoding, "replace").removeprefix("\ufeff"), is_whole, encoding
    start = start.removeprefix(codecs.BOM_UTF8)
    try:
        return start.decode("utf-8"), is_whole, "utf-8"
    except UnicodeDecodeError as error:
        if not is_whole and error.start > len(start) - 4:
            return start[: error.start].decode("utf-8"), is_whole, "utf-8"
        return start.decode("latin-1"), is_whole, "latin-1"


def _sniff_parquet(path: Path) -> RawFile:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = tuple(file.schema_arrow.names)
            batch = next(file.iter_batches(batch_size=_SEEN_ROWS), None)
            columns = [] if batch is None else [plain_values(column) for column in batch.columns]
            records = tuple(dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True))
            return RawFile(path, "parquet", names, records=records)
    except (OSError, ValueError, OverflowError, pyarrow.ArrowException) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: cannot be read as Parquet ({reason}); download or write it again") from error
