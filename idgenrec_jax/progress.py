"""Progress with rate and time left: one moving line at a terminal, plain lines in a log file."""

import contextlib
import math
import sys
import time
from collections.abc import Callable, Iterator
from typing import TextIO


class Progress:
    """Reports how much of a known amount of work is done.

    At a terminal one line is rewritten at most five times a second; elsewhere a plain line is printed when the work
    ends and every `log_seconds` before. Of several processes only process 0 reports.
    """

    def __init__(
        self,
        title: str,
        total: int,
        unit: str,
        *,
        done: int = 0,
        stream: TextIO | None = None,
        log_seconds: float = 20.0,
    ):
        """Start the clock; `total` and `done` count `unit`s, and a `total` of 0 is one that nobody knows.

        Amounts of the unit "byte" are written in the unit that fits them, such as MiB.
        """
        self._title, self._total, self._unit = title, total, unit
        self._stream = sys.stderr if stream is None else stream
        self._terminal = self._stream.isatty()
        self._interval = 0.2 if self._terminal else log_seconds
        self._first_done = self._done = done
        self._start = self._last = time.monotonic()

    def update(self, done: int, note: str = "", *, total: int | None = None) -> None:
        """Say that `done` units are finished now, of `total` where more have turned up; `note` follows the figures."""
        self._done = done
        self._total = self._total if total is None else total
        now = time.monotonic()
        if now - self._last >= self._interval:
            self._last = now
            self._write(self._line(now, note), end="" if self._terminal else "\n")

    def close(self, note: str = "") -> None:
        """Print the last line, with the whole time taken."""
        seconds = time.monotonic() - self._start
        rate = (self._done - self._first_done) / max(seconds, 1e-9)
        text = f"{self._title}: {self._amount()} in {_clock(seconds)}, {self._rate(rate)}"
        self._write(text + (f", {note}" if note else ""), end="\n")

    def _line(self, now: float, note: str) -> str:
        rate = (self._done - self._first_done) / max(now - self._start, 1e-9)
        left = _clock(max(self._total - self._done, 0) / rate) if rate > 0 and self._total else "?"
        text = f"{self._title}: {self._amount()}, {self._rate(rate)}, {left} left"
        return text + (f", {note}" if note else "")

    def _amount(self) -> str:
        if self._unit == "byte":
            return format_bytes(self._done) + (f" of {format_bytes(self._total)}" if self._total else "")
        return f"{self._done}/{self._total} {self._unit}s"

    def _rate(self, rate: float) -> str:
        return f"{format_bytes(int(rate))}/s" if self._unit == "byte" else f"{rate:.1f}/s"

    def _write(self, text: str, *, end: str) -> None:
        # Where nothing has imported `processes`, and JAX with it, there is one process.
        processes = sys.modules.get("idgenrec_jax.processes")
        if processes is not None and not processes.is_main():
            return
        self._stream.write(f"\r\x1b[K{text}{end}" if self._terminal else text + end)
        self._stream.flush()


@contextlib.contextmanager
def progress_of_unknown(title: str, unit: str, *, check: Callable[[], None]) -> Iterator[Callable[[int, int], None]]:
    """Give `report(done, total)` for work whose amount is known when it has begun; each report calls `check`.

    Work that ends without a report leaves no line.
    """
    progress: Progress | None = None

    def report(done: int, total: int) -> None:
        nonlocal progress
        if progress is None:
            progress = Progress(title, total, unit)
        progress.update(done, total=total)
        check()

    yield report
    if progress is not None:
        progress.close()


def format_bytes(count: int) -> str:
    """Return a number of bytes in the largest unit that leaves at least one."""
    units = ("B", "KiB", "MiB", "GiB", "TiB")
    power = min(int(math.log2(count)) // 10, len(units) - 1) if count else 0
    return f"{count / 2 ** (10 * power):,.1f} {units[power]}" if power else f"{count} B"


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
