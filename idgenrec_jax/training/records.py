"""`metrics.jsonl`: one JSON object a line, never twice and never out of order after a resume."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from idgenrec_jax.data.lines import parse_json, shown
from idgenrec_jax.errors import InputError
from idgenrec_jax.files import atomic_writer, explain_write_error
from idgenrec_jax.processes import from_main
from idgenrec_jax.training.record_writers import SPLITS, OpenWriter, Record, RecordWriter

_REMEDY = "delete the file, and the run goes on without its earlier records"


class MetricsLog:
    """Appends records to a file; opened with the number of records a checkpoint knew, it forgets those after it.

    Every process makes the same calls; process 0 writes, to the file and to what else `writers` open. Use it in a
    `with` statement, so that these are closed.
    """

    def __init__(self, path: str | Path, *, records: int, writers: Sequence[OpenWriter] = ()):
        """Keep the first `records` lines of `path` and go on from there.

        Raises:
            InputError: the file cannot be read, or `writers` are to read lines that are no records.
        """
        self._path = Path(path)
        self._writers: list[RecordWriter] = []
        self.records = from_main(lambda: self._open(records, writers))

    def append(self, record: dict[str, Any]) -> None:
        """Write one record and hand it to the operating system.

        Raises:
            InputError: the disk is full.
        """
        from_main(lambda: self._write(record))
        self.records += 1

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *_: Any) -> None:
        for writer in self._writers:
            writer.close()

    def _open(self, records: int, writers: Sequence[OpenWriter]) -> int:
        try:
            kept = self._path.read_text(encoding="utf-8").splitlines()[:records] if self._path.exists() else []
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{self._path}: cannot be read ({error}); {_REMEDY}") from error
        parsed = [_parsed(line, f"{self._path}:{number}") for number, line in enumerate(kept, 1)] if writers else []
        with atomic_writer(self._path) as file:
            file.writelines(line + "\n" for line in kept)
        self._writers += [open_writer(parsed) for open_writer in writers]
        return len(kept)

    def _write(self, record: dict[str, Any]) -> None:
        try:
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise explain_write_error(error, self._path) from error
        for writer in self._writers:
            writer.write(record)


def _parsed(line: str, place: str) -> Record:
    record = parse_json(line, place, _REMEDY)
    fields = record if isinstance(record, dict) else {}
    numbers = all(isinstance(fields.get(name), int | float) for name in ("step", "seconds"))
    if not numbers or fields.get("split") not in SPLITS:
        raise InputError(f"{place}: found {shown(record)}, expected a record with step, split and seconds; {_REMEDY}")
    return record
