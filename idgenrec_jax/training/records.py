"""`metrics.jsonl`: one JSON object a line, never twice and never out of order after a resume."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from idgenrec_jax.files import atomic_writer, explain_write_error
from idgenrec_jax.processes import from_main
from idgenrec_jax.training.record_writers import OpenWriter, RecordWriter


class MetricsLog:
    """Appends records to a file; opened with the number of records a checkpoint knew, it forgets those after it.

    Every process makes the same calls; process 0 writes, to the file and to what else `writers` open. Use it in a
    `with` statement, so that these are closed.
    """

    def __init__(self, path: str | Path, *, records: int, writers: Sequence[OpenWriter] = ()):
        """Keep the first `records` lines of `path` and go on from there."""
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
        kept = self._path.read_text(encoding="utf-8").splitlines()[:records] if self._path.exists() else []
        with atomic_writer(self._path) as file:
            file.writelines(line + "\n" for line in kept)
        if writers:
            parsed = [json.loads(line) for line in kept]
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
