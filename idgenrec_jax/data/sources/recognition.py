"""Which raw format files are of."""

from collections.abc import Sequence
from pathlib import Path

from idgenrec_jax.data.sources import SOURCES
from idgenrec_jax.data.sources.sniffing import RawFile, find_files
from idgenrec_jax.data.sources.source import RawData
from idgenrec_jax.data.sources.table import TableFlags, open_table
from idgenrec_jax.data.sources.table_guess import guess
from idgenrec_jax.errors import InputError, look_up

AUTO, TABLE = "auto", "table"


def recognise(source: str, inputs: Sequence[str | Path], table: TableFlags, encoding: str = "") -> tuple[str, RawData]:
    """Return the name of the format and the files, opened; "auto" tries every format.

    Raises:
        InputError: a file is missing, or the files are not of the format, or of none that is known.
    """
    files = find_files(inputs, encoding)
    if source == TABLE:
        return TABLE, open_table(files, table, encoding)
    if source != AUTO:
        raw = look_up(SOURCES, source, "--source").recognise(files)
        if raw is None:
            raise InputError(
                f"--source={source}: found {_describe(files)}; expected {SOURCES[source].expects}; {_others(files)}"
            )
        return source, raw
    for name, known in SOURCES.items():
        raw = known.recognise(files)
        if raw is not None:
            return name, raw
    known_names = "; ".join(f"{name} ({known.help})" for name, known in SOURCES.items())
    raise InputError(
        f"--source=auto: does not know {_describe(files)}; it knows {known_names}; any other table is read by "
        f"{guess(files)}"
    )


def _describe(files: Sequence[RawFile]) -> str:
    shown = ", ".join(file.describe() for file in files[:4])
    return shown + (f" and {len(files) - 4} more files" if len(files) > 4 else "")


def _others(files: Sequence[RawFile]) -> str:
    """Which other format the files are of, or how they are read as a table."""
    for name, known in SOURCES.items():
        if known.recognise(files) is not None:
            return f"they look like --source={name} ({known.help})"
    return f"any table is read by {guess(files)}"
