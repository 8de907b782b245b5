"""`metrics.jsonl`: one JSON object a line, never twice and never out of order after a resume."""

import json
from pathlib import Path
from typing import Any

from idgenrec_jax.files import atomic_writer, explain_write_error
from idgenrec_jax.processes import from_main


class MetricsLog:
    """Appends records to a file; opened with the number of records a checkpoint knew, it forgets those after it.

    Every process makes the same calls; process 0 writes.
    """

    def __init__(self, path: str | Path, *, records: int):
        """Keep the first `records` lines of `path` and go on from there."""
        self._path = Path(path)
        self.records = from_main(lambda: self._shorten(records))

    def append(self, record: dict[str, Any]) -> None:
        """Write one record and hand it to the operating system.

        Raises:
            InputError: the disk is full.
        """
        from_main(lambda: self._write(record))
        self.records += 1

    def _shorten(self, records: int) -> int:
        lines = self._path.read_text(encoding="utf-8").splitlines()[:records] if self._path.exists() else []
        with atomic_writer(self._path) as file:
            file.writelines(line + "\n" for line in lines)
        return len(lines)

    def _write(self, record: dict[str, Any]) -> None:
        try:
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise explain_write_error(error, self._path) from error
