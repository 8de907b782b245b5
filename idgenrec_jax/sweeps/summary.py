"""The table of a sweep: trials that differ by their seed alone are one line, best validation first."""

import csv
import dataclasses
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from idgenrec_jax.files import atomic_writer
from idgenrec_jax.sweeps.trials import FAILED, FINISHED, Trial

SEED = "training.seed"
METRIC = "ndcg@10"
SUMMARY_FILE = "summary.csv"


@dataclasses.dataclass(frozen=True)
class Line:
    """The trials with the same overrides but for the seed; means and standard deviations are over finished ones."""

    overrides: dict[str, Any]
    finished: int
    failed: int
    trials: int
    validation: tuple[float, float] | None
    test: tuple[float, float] | None


def summarise(trials: Sequence[Trial]) -> list[Line]:
    """Return the lines of the table, the best mean of validation NDCG@10 first, those without a finished trial last."""
    groups: dict[str, list[Trial]] = {}
    for trial in trials:
        without_seed = {name: value for name, value in trial.overrides.items() if name != SEED}
        groups.setdefault(json.dumps(without_seed, sort_keys=True), []).append(trial)
    lines = []
    for key, members in groups.items():
        results = [trial.results() for trial in members if trial.status == FINISHED]
        lines.append(
            Line(
                overrides=json.loads(key),
                finished=len(results),
                failed=sum(trial.status == FAILED for trial in members),
                trials=len(members),
                validation=_spread([result["validation"][METRIC] for result in results]),
                test=_spread([result["test"][METRIC] for result in results]),
            )
        )
    return sorted(lines, key=lambda line: -line.validation[0] if line.validation else float("inf"))


def summary_table(trials: Sequence[Trial]) -> str:
    """Return the table as plain text: only the fields that differ between trials are named."""
    lines = summarise(trials)
    fields = _differing_fields(lines)
    header = [f"validation {METRIC}", f"test {METRIC}", "finished", "failed", *fields]
    rows = [
        [
            _with_deviation(line.validation),
            _with_deviation(line.test),
            f"{line.finished} of {line.trials}",
            str(line.failed),
            *(str(line.overrides.get(field, "")) for field in fields),
        ]
        for line in lines
    ]
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    padded = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in [header, *rows]]
    return "\n".join("  ".join(row).rstrip() for row in padded)


def write_summary(trials: Sequence[Trial], output: Path) -> None:
    """Write a line a trial to `output`/summary.csv: index, status, all overrides, validation and test metrics."""
    fields = sorted({name for trial in trials for name in trial.overrides})
    found = {trial.index: trial.results() for trial in trials if trial.status == FINISHED}
    first = next(iter(found.values()), {})
    metrics = [(split, name) for split in ("validation", "test") for name in first.get(split, {})]
    with atomic_writer(output / SUMMARY_FILE) as file:
        writer = csv.writer(file)
        writer.writerow(["trial", "status", *fields, *(f"{split} {name}" for split, name in metrics), "seconds"])
        for trial in trials:
            results = found.get(trial.index)
            values = [results[split][name] for split, name in metrics] if results else [""] * len(metrics)
            seconds = results["seconds"] if results else ""
            own = [trial.overrides.get(field, "") for field in fields]
            writer.writerow([trial.index, trial.status, *own, *values, seconds])


def _differing_fields(lines: Sequence[Line]) -> list[str]:
    fields = {name: None for line in lines for name in line.overrides}
    return [name for name in fields if len({json.dumps(line.overrides.get(name)) for line in lines}) > 1]


def _spread(values: Sequence[float]) -> tuple[float, float] | None:
    if not values:
        return None
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def _with_deviation(spread: tuple[float, float] | None) -> str:
    return "-" if spread is None else f"{spread[0]:.4f} +- {spread[1]:.4f}"
