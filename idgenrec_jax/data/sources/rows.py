"""Records of raw files, one after another: JSON lines, Python literals, separated values and Parquet.

The parsing is that of libraries: msgspec reads only the fields that are asked for, csv and pyarrow the tables. What is
here finds lines and names the place of a fault.
"""

import ast
import codecs
import csv
import gzip
import io
import json
import warnings
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal

import msgspec

from idgenrec_jax.data.lines import shown
from idgenrec_jax.data.sources.values import Faults, RowFault
from idgenrec_jax.errors import InputError
from idgenrec_jax.progress import Progress

UTF_16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
LONGEST_CELL = 2**24
"""Characters of a cell; a quote without its partner would otherwise swallow the rest of a file."""

# Python's own parser takes hundreds of bytes for each character.
_LONGEST_LITERAL = 2**20
_REPORTED_LINES = 8192
_LARGE = 2**24
"""Bytes from which on a person sees how far a file is read."""
_BROKEN_FILE = "download or write it again, and check its permissions"


@dataclass(frozen=True)
class Form:
    """How a file is written.

    - `kind` is "json" (an object a line; Python literals, too), "csv" (separated values), "parquet", "words" (columns
      with blanks between, the last of which is the rest of the line) or "document" (one JSON object for the whole file,
      each member of which is a record).
    - `columns` names the columns of a "csv" without a header line; None: its first line names them. It names those of
      "words". For a "document" it names the column of the members' keys and, where there is a second name, that of
      their values; the other columns are the fields of the values.
    - `separator` is one character or several; with several, nothing is quoted.
    - `encoding` is Python's name of one, or "utf-8|latin-1": the second where the file is not in the first.
    """

    kind: str
    columns: tuple[str, ...] | None = None
    separator: str = ","
    quoted: bool = True
    encoding: str = "utf-8"


@dataclass
class Reading:
    """How the files of a preparation are read.

    `faults` says what becomes of faulty records. With `needs_rating` a record without one is faulty. `encoding` stands
    for that of all forms, where it is not blank. With `progress` a person sees how far each file is read.
    """

    faults: Faults = field(default_factory=Faults)
    needs_rating: bool = False
    encoding: str = ""
    progress: bool = False

    def __post_init__(self) -> None:
        """Check the encoding.

        Raises:
            InputError: Python knows no encoding of text of that name.
        """
        if self.encoding and not is_encoding(self.encoding):
            raise InputError(
                f"--encoding={self.encoding}: not known; expected the name of an encoding, such as utf-8, latin-1, "
                "cp1252, utf-16 or shift_jis"
            )


@dataclass
class Rows:
    """The records of a file as tuples of the values of some of its columns, None where a record lacks one.

    `line` is the line that the record just given begins on (for Parquet, its number; for a document, its key).
    Iterating raises InputError where the file cannot be read, and tells `reading.faults` of records that cannot be
    taken.
    """

    path: Path
    form: Form
    wanted: Sequence[str]
    reading: Reading
    line: int | str = 0

    def __iter__(self) -> Iterator[tuple]:
        """Give the records in the order of the file."""
        read = {
            "json": self._json,
            "csv": self._separated,
            "parquet": self._parquet,
            "words": self._words,
            "document": self._document,
        }[self.form.kind]
        yield from read()

    def parsed(self, parse: Callable[..., Any]) -> Iterator[Any]:
        """Give what `parse` makes of each record's values, without those that it raises RowFault for."""
        faults = self.reading.faults
        for row in self:
            try:
                value = parse(*row)
            except RowFault as fault:
                faults.note(self.path, self.line, fault)
                continue
            yield value

    def _json(self) -> Iterator[tuple]:
        decode = _field_decoder(self.wanted)
        for number, raw in self._lines() if self._is_utf8 else self._lines_as_utf8():
            self.line = number
            try:
                row = decode(raw)
            except (msgspec.MsgspecError, UnicodeDecodeError, RowFault, RecursionError):
                if not raw.strip():
                    continue
                try:
                    row = self._odd_record(raw)
                except RowFault as fault:
                    self.reading.faults.note(self.path, self.line, fault)
                    continue
            yield row

    def _odd_record(self, raw: bytes) -> tuple:
        """A record that is not strict JSON: with NaN or halves of characters in it, or a Python literal."""
        record = read_record(self._decode(raw) if self._is_utf8 else raw.decode("utf-8", "surrogatepass"))
        return tuple(record.get(name) for name in self.wanted)

    def _separated(self) -> Iterator[tuple]:
        rows = self._cells()
        names = self.form.columns
        if names is None:
            names = tuple(cell.strip() for cell in next(rows, ()))
        self._check_columns(names)
        places, width = [names.index(name) for name in self.wanted], len(names)
        for cells in rows:
            if len(cells) != width:
                if len(cells) == 1 and not cells[0].strip():
                    continue
                expected = self.form.separator.join(names)
                found = shown(self.form.separator.join(cells))
                self.reading.faults.note(
                    self.path, self.line, f"found {found}, expected {width} columns: {shown(expected)}"
                )
                continue
            yield tuple([cells[place] for place in places])

    def _cells(self) -> Iterator[list[str]]:
        """The cells of each line, or of the lines that a quoted cell goes over."""
        separator = self.form.separator
        lines = self._decoded_lines()
        if len(separator) != 1:
            for number, text in lines:
                self.line = number
                if text := text.rstrip("\r\n"):
                    yield text.split(separator)
            return
        csv.field_size_limit(LONGEST_CELL)
        again: deque[tuple[int, str]] = deque()  # Lines that a faulty row has swallowed.
        quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if self.form.quoted else csv.QUOTE_NONE
        taken: list[tuple[int, str]] = []  # The lines of the row that is being read.

        def feed() -> Iterator[str]:
            while (line := again.popleft() if again else next(lines, None)) is not None:
                taken.append(line)
                yield line[1]

        while True:
            reader = csv.reader(feed(), delimiter=separator, quoting=quoting, strict=self.form.quoted)
            try:
                for cells in reader:
                    self.line = taken[0][0]
                    taken.clear()
                    if cells:
                        yield cells
                return
            except csv.Error as error:  # A quote without its partner, or a cell that is too long.
                self.line = taken[0][0]
                fault = f"not a line of values separated by {separator!r} ({error})"
                self.reading.faults.note(self.path, self.line, fault)
                # The row's first line is at fault; what it swallowed is read again.
                again.extendleft(reversed(taken[1:]))
                taken.clear()

    def _words(self) -> Iterator[tuple]:
        names = self.form.columns or ()
        places = [names.index(name) for name in self.wanted]
        for number, text in self._decoded_lines():
            self.line = number
            cells = text.split(None, len(names) - 1)
            if cells:
                cells += [""] * (len(names) - len(cells))
                yield tuple([cells[place].rstrip() for place in places])

    def _document(self) -> Iterator[tuple]:
        key_column, value_column = (*(self.form.columns or ()), None)[:2]
        raw = b"".join(line for _, line in self._lines())
        try:
            document = json.loads(self._decode(raw), object_pairs_hook=_without_repeats)
        except (ValueError, RecursionError) as error:  # A RowFault is a ValueError.
            reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
            raise InputError(f"{self.path}: cannot be read as one JSON document ({reason}); {_BROKEN_FILE}") from error
        if not isinstance(document, dict):
            raise InputError(f"{self.path}: a JSON {type(document).__name__}, expected an object; check --input")
        for key, value in document.items():
            self.line = shown(key)
            if value_column is None and not isinstance(value, dict):
                self.reading.faults.note(self.path, self.line, f"is {shown(value)}, expected an object with fields")
                continue
            yield tuple(
                [
                    key if name == key_column else value if name == value_column else value.get(name)
                    for name in self.wanted
                ]
            )

    def _parquet(self) -> Iterator[tuple]:
        import pyarrow
        import pyarrow.parquet

        try:
            file = pyarrow.parquet.ParquetFile(self.path)
            self._check_columns(file.schema_arrow.names)
            number = 0
            for batch in file.iter_batches(columns=list(dict.fromkeys(self.wanted)), batch_size=65536):
                columns = [plain_values(batch.column(name)) for name in self.wanted]
                for row in zip(*columns, strict=True):
                    number += 1
                    self.line = number
                    yield row
        except FileNotFoundError as error:
            raise InputError(f"{self.path}: no such file; check --input") from error
        except InputError:
            raise
        except (OSError, ValueError, OverflowError, pyarrow.ArrowException) as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"{self.path}: cannot be read as Parquet ({reason}); {_BROKEN_FILE}") from error

    def _check_columns(self, names: Sequence[str]) -> None:
        for name in self.wanted:
            if names.count(name) != 1:
                found = "has two columns" if name in names else "has no column"
                columns = ", ".join(map(shown, names[:20])) or "none, for the file is empty"
                raise InputError(f"{self.path}:1: {found} {shown(name)}; its columns are {columns}")

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        """(number, line with its end) of a file, unpacked where its name ends in .gz."""
        try:
            with open(self.path, "rb") as packed:
                progress = self._progress()
                with gzip.open(packed) if self.path.suffix == ".gz" else packed as file:
                    number = 0
                    for number, line in enumerate(file, 1):
                        if number == 1:
                            line = line.removeprefix(codecs.BOM_UTF8)
                        if progress and number % _REPORTED_LINES == 0:
                            progress.update(packed.tell(), f"{number:,} lines")
                        yield number, line
                    if progress:
                        progress.update(self.path.stat().st_size)
                        progress.close(f"{number:,} lines")
        except FileNotFoundError as error:
            raise InputError(f"{self.path}: no such file; check --input") from error
        except (OSError, EOFError, zlib.error) as error:
            # A broken gzip file is an OSError without a number, an EOFError or, in the middle, an error of zlib.
            reason = getattr(error, "strerror", None) or str(error)
            raise InputError(f"{self.path}: cannot be read ({reason}); {_BROKEN_FILE}") from error

    def _progress(self) -> Progress | None:
        size = self.path.stat().st_size
        shown = self.reading.progress and size >= _LARGE
        return Progress(self.path.name, size, "byte") if shown else None

    def _decoded_lines(self) -> Iterator[tuple[int, str]]:
        name = codecs.lookup(self.encoding).name
        if name.startswith(("utf-16", "utf-32")):
            # Their line ends are several bytes; the decoder finds them.
            try:
                whole = b"".join(line for _, line in self._lines()).decode(self.encoding).removeprefix("\ufeff")
            except UnicodeError as error:
                raise InputError(f"{self.path}: not {name} text ({error}); name its encoding: --encoding") from error
            yield from enumerate(io.StringIO(whole, newline="\n"), 1)
            return
        for number, raw in self._lines():
            try:
                text = self._decode(raw)
            except RowFault as fault:
                self.reading.faults.note(self.path, number, fault)
            else:
                yield number, text

    def _lines_as_utf8(self) -> Iterator[tuple[int, bytes]]:
        for number, text in self._decoded_lines():
            yield number, text.encode("utf-8", "surrogatepass")

    @cached_property
    def _is_utf8(self) -> bool:
        return codecs.lookup(self.encoding).name == "utf-8"

    @cached_property
    def encoding(self) -> str:
        """The encoding of the file: as said, by its byte order mark, or by its contents where there is a choice."""
        if self.reading.encoding:
            return self.reading.encoding
        if next(self._lines(), (1, b""))[1].startswith(UTF_16_MARKS):
            return "utf-16"
        first, _, second = self.form.encoding.partition("|")
        if not second:
            return first
        try:
            for _, line in self._lines():
                line.decode(first)
        except UnicodeDecodeError:
            return second
        return first

    def _decode(self, raw: bytes) -> str:
        try:
            return raw.decode(self.encoding)
        except UnicodeError as error:
            fault = str(error)
            if isinstance(error, UnicodeDecodeError) and error.start < len(raw):
                fault = f"byte 0x{raw[error.start]:02x} at position {error.start + 1}"
            hint = "name the encoding, such as --encoding=latin-1"
            raise RowFault(f"not {self.encoding} text ({fault}); {hint}") from error


def is_encoding(name: str) -> bool:
    """Tell whether Python knows an encoding of text of that name."""
    try:
        return isinstance(b"a".decode(name), str)
    except UnicodeError:  # One letter may be no text in it.
        return True
    except (LookupError, ValueError):
        return False


def plain_values(column: Any) -> list[Any]:
    """Return the values of a pyarrow Array as Python's: moments in UTC, decimals as numbers.

    Raises:
        ValueError: a moment is none of Python's, or a text is not UTF-8.
    """
    import pyarrow

    kind = column.type
    if pyarrow.types.is_timestamp(kind):
        # Python's moments have no nanoseconds, and not every name of a time zone is known everywhere.
        column = column.cast(pyarrow.timestamp("us", kind.tz and "UTC"), safe=False)
    values = column.to_pylist()
    if pyarrow.types.is_decimal(kind):
        number = int if kind.scale <= 0 else float
        return [None if value is None else number(value) for value in values]
    return values


def read_record(line: str) -> dict[str, Any]:
    """Return the object in a line of JSON, or the dict in a Python literal, as Amazon and Steam published some files.

    Raises:
        RowFault: it is neither.
    """
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        record = read_literal(line)
    if not isinstance(record, dict):
        raise RowFault(f"a {type(record).__name__}, expected an object with fields")
    if not all(isinstance(name, str) for name in record):
        raise RowFault(f"an object whose fields have other names than texts: {shown(line.strip())}")
    return record


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of a JSON document; Python would keep the last of equal keys without a word."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise RowFault(f"the key {shown(next(key for key in keys if keys.count(key) > 1))} stands twice in an object")
    return found


def read_literal(line: str) -> object:
    """Return a Python literal.

    Raises:
        RowFault: it is none.
    """
    try:
        if len(line) > _LONGEST_LITERAL:
            raise ValueError("too long")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python warns of "\d" and the like in a literal, line by line.
            return ast.literal_eval(line.strip())
    # A literal that is nested too deeply is a MemoryError or a RecursionError, a dict with a list as key a TypeError.
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise RowFault(f"not JSON nor a Python literal: {shown(line.strip())}") from error


def _field_decoder(names: Sequence[str]) -> Callable[[bytes], tuple]:
    """What reads some fields of an object, and passes over all others without making anything of them."""
    different = list(dict.fromkeys(names))
    fields = {f"field_{place}": name for place, name in enumerate(different)}
    try:
        record = msgspec.defstruct("Record", [(field, Any, None) for field in fields], rename=fields, gc=False)
    except ValueError:  # It takes no names with quotes or control characters.
        return _refuse
    decode, values = msgspec.json.Decoder(record).decode, msgspec.structs.astuple
    if len(different) == len(names):
        return lambda line: values(decode(line))
    pick = itemgetter(*map(different.index, names))
    return lambda line: pick(values(decode(line)))


def _refuse(line: bytes) -> tuple:
    """Leave a line to the parser that takes any name."""
    raise RowFault("not read")
