"""One piece of work, timed by itself or in turns with a peer, and the line of the table that comes of it."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from idgenrec_jax.benchmark.machine import Machine
from idgenrec_jax.benchmark.peer import Peer
from idgenrec_jax.benchmark.process_memory import process_peak_bytes
from idgenrec_jax.errors import InputError


class Disagreement(InputError):
    """The peer's outputs are not ours, so that there is nothing to be timed."""


@dataclasses.dataclass(frozen=True)
class Work:
    """Something to be done `run` by `run`, on inputs that are ready.

    `run` returns when its result is on the host. `units` of work (say, 64 "users") are done by a run; `operations` and
    `num_bytes` are what a run needs whoever does it (see models/operations.py), 0 where that was not counted. `compare`
    takes a peer's outputs and returns in words how well they agree; it raises Disagreement where they do not. `job`
    writes the peer's job into a folder; None where there is no peer. `note` is printed below the table; a function is
    asked after the runs.

    `differences` say in what the peer's work is not this. `peer_batch_sizes`, where there are any, are tried by the
    peer before it is timed, which takes the fastest. `beside` is other work of ours that is timed in turns with this,
    on a line of its own, instead of a peer.
    """

    name: str
    unit: str
    units: int | float
    run: Callable[[], Any]
    operations: int | float = 0.0
    num_bytes: int | float = 0.0
    job: Callable[[Any], None] | None = None
    compare: Callable[[Mapping[str, np.ndarray]], str] | None = None
    note: str | Callable[[], str] = ""
    differences: tuple[str, ...] = ()
    peer_batch_sizes: tuple[int, ...] = ()
    beside: "Work | None" = None

    def words(self) -> str:
        """Return the note."""
        return self.note() if callable(self.note) else self.note


@dataclasses.dataclass(frozen=True)
class Result:
    """Figures of one work: rates in units a second, medians over runs; None where nothing was measured.

    `ratio` is the median of the ratios of neighbouring runs, ours over the peer's: the machine's drift is in both.
    `spread` is the lowest and highest of these. `floor` is the rate that the machine's own limits allow.
    `first_seconds` is the first run's time beyond a later one: compilation. Peaks are bytes of the process, or of the
    accelerator.
    """

    name: str
    unit: str
    ours: float
    peer: float | None = None
    ratio: float | None = None
    spread: tuple[float, float] | None = None
    floor: float | None = None
    first_seconds: float | None = None
    peak_bytes: int | None = None
    peer_peak_bytes: int | None = None
    agreement: str = ""
    note: str = ""


def measure(work: Work, machine: Machine, *, repeats: int, peer: Peer | None) -> Result:
    """Run `work` and the peer once to warm up, compare their outputs, then time `repeats` runs of each in turns.

    Raises:
        Disagreement: the peer's outputs are not ours.
    """
    first = _seconds(work.run)
    agreement = ""
    if peer is not None:
        if work.compare is None:
            raise ValueError(f"{work.name}: has a peer, but nothing that compares their outputs")
        # Accelerators round the inputs of float32 products, each library in its own way.
        with jax.default_matmul_precision("highest"):
            agreement = "; ".join([work.compare(peer.outputs()), *work.differences])
        if work.peer_batch_sizes:
            agreement = f"{agreement}; {peer.choose_batch_size(work.peer_batch_sizes)}"
        else:
            peer.run()
    ours: list[float] = []
    theirs: list[float] = []
    for _ in range(repeats):
        ours.append(work.units / _seconds(work.run))
        if peer is not None:
            seconds, units = peer.run()
            theirs.append(units / seconds)
    ratios = [mine / other for mine, other in zip(ours, theirs, strict=False)]
    return _result(
        work,
        machine,
        ours,
        first,
        peer=statistics.median(theirs) if theirs else None,
        ratio=statistics.median(ratios) if ratios else None,
        spread=(min(ratios), max(ratios)) if ratios else None,
        peer_peak_bytes=peer.peak_bytes() if peer is not None else None,
        agreement=agreement,
    )


def measure_beside(work: Work, machine: Machine, *, repeats: int) -> list[Result]:
    """Time `work` and the work `beside` it in turns, and return a line for each; the first has the ratio of the two."""
    assert work.beside is not None
    both = work, work.beside
    first = [_seconds(one.run) for one in both]
    rates = [[one.units / _seconds(one.run) for one in both] for _ in range(repeats)]
    ours, theirs = map(list, zip(*rates, strict=True))
    ratios = [mine / other for mine, other in zip(ours, theirs, strict=True)]
    return [
        _result(
            work,
            machine,
            ours,
            first[0],
            peer=statistics.median(theirs),
            ratio=statistics.median(ratios),
            spread=(min(ratios), max(ratios)),
            agreement=f'the peer is "{work.beside.name}"',
        ),
        _result(work.beside, machine, theirs, first[1]),
    ]


def _result(work: Work, machine: Machine, ours: Sequence[float], first: float, **fields: Any) -> Result:
    """The line of work whose runs had the rates `ours`, and whose first run took `first` seconds."""
    floor = machine.floor_seconds(work.operations, work.num_bytes)
    rate = statistics.median(ours)
    return Result(
        name=work.name,
        unit=work.unit,
        ours=rate,
        floor=work.units / floor if floor else None,
        first_seconds=max(0.0, first - work.units / rate),
        peak_bytes=peak_bytes(),
        note=work.words(),
        **fields,
    )


def peak_bytes() -> int:
    """Return the most memory held so far: the accelerator's, or that of this process where JAX computes on the CPU."""
    statistics_of_device = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in statistics_of_device:
        return int(statistics_of_device["peak_bytes_in_use"])
    return process_peak_bytes()


def table(results: Sequence[Result]) -> str:
    """Return the results as plain text, a line each, and below them what was compared and noted."""
    header = ("work", "unit", "ours", "peer", "ratio", "floor", "ms a unit", "peak MiB", "peer MiB", "compile s")
    rows = [header] + [
        (
            result.name,
            f"{result.unit}/s",
            _number(result.ours),
            _number(result.peer),
            "-" if result.ratio is None else f"{result.ratio:.2f}x",
            _number(result.floor),
            _number(1e3 / result.ours),
            _number(result.peak_bytes and result.peak_bytes / 2**20, digits=0),
            _number(result.peer_peak_bytes and result.peer_peak_bytes / 2**20, digits=0),
            _number(result.first_seconds),
        )
        for result in results
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    lines = [
        "  ".join(
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    below = [
        f"{result.name}: " + "; ".join(text for text in (result.agreement, result.note) if text)
        for result in results
        if result.agreement or result.note
    ]
    return "\n".join(lines + ([""] + below if below else []))


def _number(value: float | None, digits: int = 1) -> str:
    if value is None:
        return "-"
    return f"{value:.{digits}f}" if value >= 10 or digits == 0 else f"{value:.3g}"


def _seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start
