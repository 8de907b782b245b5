"""The table of a sweep: trials that differ by their seed alone are one configuration, best validation first.

Each configuration is compared with the best one by a paired test over users (`significance.py`). The users are the
sample: a supported difference is one that other users of this kind would be expected to show with these trained
models. Nothing follows for other seeds; the standard deviation over seeds is there for that. The best was chosen by
the same users, so that it looks a little better than it is.
"""

import csv
import dataclasses
import json
import statistics
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from idgenrec_jax.evaluation.metrics import SPLITS, with_cutoffs
from idgenrec_jax.evaluation.significance import holm, paired_differences, read_gains, sign_flip_p_value
from idgenrec_jax.files import atomic_writer
from idgenrec_jax.run_files import SELECTION_METRIC
from idgenrec_jax.sweeps.trials import FAILED, FINISHED, PRUNED, Trial

SEED = "training.seed"
SUMMARY_FILE = "summary.csv"
SIGNIFICANCE = 0.05
MARK = "~"
BEST, DIFFERS, UNSUPPORTED, NO_RANKS = "best", "differs", f"{MARK} not supported", "no common ranks"
_WIDTH = 120
LEGEND = (
    f"{MARK}: a paired test over users does not support a difference from the best (randomisation test of validation "
    f"{SELECTION_METRIC}, over the seeds that both have, p >= {SIGNIFICANCE} after Holm's correction). Users are the "
    "sample, so it says nothing about other seeds; +- is the standard deviation over seeds."
)


@dataclasses.dataclass(frozen=True)
class Spread:
    """Values of one metric, one a finished trial."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Their mean."""
        return statistics.mean(self.values)

    @property
    def deviation(self) -> float | None:
        """Their standard deviation (n - 1); None for a single one."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A configuration against the best: BEST, DIFFERS, UNSUPPORTED or NO_RANKS, for the middle two with numbers.

    `difference` is the mean over users of its validation NDCG@10 less the best one's, over the seeds that both have.
    """

    verdict: str
    difference: float | None = None
    adjusted_p: float | None = None


@dataclasses.dataclass(frozen=True)
class Configuration:
    """The trials with the same overrides but for the seed; `comparison` is None while none of them is finished."""

    overrides: dict[str, Any]
    trials: tuple[Trial, ...]
    validation: Spread | None
    test: Spread | None
    comparison: Comparison | None = None

    def count(self, status: str) -> int:
        """Return how many of its trials have a status."""
        return sum(trial.status == status for trial in self.trials)


def summarise(trials: Sequence[Trial]) -> list[Configuration]:
    """Return the configurations, the best mean of validation NDCG@10 first, those without a finished trial last."""
    groups: dict[str, list[Trial]] = {}
    for trial in trials:
        without_seed = {name: value for name, value in trial.overrides.items() if name != SEED}
        groups.setdefault(json.dumps(without_seed, sort_keys=True), []).append(trial)
    configurations = []
    for members in groups.values():
        results = [trial.results() for trial in members if trial.status == FINISHED]
        configurations.append(
            Configuration(
                overrides={name: value for name, value in members[0].overrides.items() if name != SEED},
                trials=tuple(members),
                validation=_spread(results, "validation"),
                test=_spread(results, "test"),
            )
        )
    configurations.sort(key=lambda one: -one.validation.mean if one.validation else float("inf"))
    finished = [one for one in configurations if one.validation]
    compared = [
        dataclasses.replace(one, comparison=comparison)
        for one, comparison in zip(finished, _compare(finished), strict=True)
    ]
    return compared + configurations[len(finished) :]


def differing_fields(configurations: Sequence[Configuration]) -> list[str]:
    """Return the fields whose values are not the same in all configurations."""
    fields = {name: None for one in configurations for name in one.overrides}
    return [name for name in fields if len({json.dumps(one.overrides.get(name)) for one in configurations}) > 1]


def summary_table(configurations: Sequence[Configuration]) -> str:
    """Return the table as plain text: only the fields that differ are named; last errors and a legend follow it."""
    fields = differing_fields(configurations)
    states = [status for status in (FAILED, PRUNED) if any(one.count(status) for one in configurations)]
    metrics = [f"{split} {SELECTION_METRIC}" for split in ("validation", "test")]
    header = [*metrics, "against the best", "finished", *states, *fields]
    rows = [
        [
            _with_deviation(one.validation),
            _with_deviation(one.test),
            _against_best(one.comparison),
            f"{one.count(FINISHED)} of {len(one.trials)}",
            *(str(one.count(status)) for status in states),
            *(str(one.overrides.get(field, "")) for field in fields),
        ]
        for one in configurations
    ]
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    padded = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in [header, *rows]]
    lines = ["  ".join(row).rstrip() for row in padded]
    failed = [trial for one in configurations for trial in one.trials if trial.status == FAILED]
    lines += [f"trial {trial.index} failed: {trial.failure()} ({trial.folder})" for trial in failed]
    verdicts = {one.comparison.verdict for one in configurations if one.comparison}
    if verdicts & {DIFFERS, UNSUPPORTED}:
        lines.append(textwrap.fill(LEGEND, _WIDTH))
    if NO_RANKS in verdicts:
        lines.append(f"{NO_RANKS}: it and the best have no seed for which both wrote the ranks of the same users")
    return "\n".join(lines)


def write_summary(configurations: Sequence[Configuration], output: Path) -> None:
    """Write a line a trial to `output`/summary.csv: its overrides and metrics, and its configuration's comparison."""
    rows = sorted(((trial, one) for one in configurations for trial in one.trials), key=lambda row: row[0].index)
    fields = sorted({name for trial, _ in rows for name in trial.overrides})
    found = {trial.index: with_cutoffs(trial.results()) for trial, _ in rows if trial.status == FINISHED}
    # Trials that differ in their beams have metrics of different names.
    named_metrics = dict.fromkeys((split, name) for split in SPLITS for one in found.values() for name in one[split])
    metrics = list(named_metrics)
    with atomic_writer(output / SUMMARY_FILE) as file:
        writer = csv.writer(file)
        compared = ["against the best", "difference", "adjusted p"]
        named = [f"{split} {name}" for split, name in metrics]
        writer.writerow(["trial", "status", *fields, *named, "seconds", *compared])
        for trial, one in rows:
            results = found.get(trial.index)
            values = [results[split].get(name, "") for split, name in metrics] if results else [""] * len(metrics)
            comparison = one.comparison if results else None
            writer.writerow(
                [
                    trial.index,
                    trial.status,
                    *(trial.overrides.get(field, "") for field in fields),
                    *values,
                    results["seconds"] if results else "",
                    *(dataclasses.astuple(comparison) if comparison else [""] * len(compared)),
                ]
            )


def _compare(finished: Sequence[Configuration]) -> list[Comparison]:
    """Compare configurations with the first of them."""
    if not finished:
        return []
    best, *others = map(_gains_by_seed, finished)
    differences: list[np.ndarray | None] = []
    for other in others:
        seeds = [seed for seed in other if seed in best]
        paired = paired_differences([other[seed] for seed in seeds], [best[seed] for seed in seeds]) if seeds else None
        differences.append(None if paired is None or not len(paired) else paired)
    p_values = [sign_flip_p_value(paired) for paired in differences if paired is not None]
    adjusted = iter(holm(p_values))
    comparisons = [Comparison(BEST)]
    for difference in differences:
        if difference is None:
            comparisons.append(Comparison(NO_RANKS))
            continue
        p_value = next(adjusted)
        verdict = DIFFERS if p_value < SIGNIFICANCE else UNSUPPORTED
        comparisons.append(Comparison(verdict, float(difference.mean()), p_value))
    return comparisons


def _gains_by_seed(configuration: Configuration) -> dict[Any, dict[str, float]]:
    """The users' gains of every seed with ranks; trials that set no seed share one."""
    finished = [trial for trial in configuration.trials if trial.status == FINISHED]
    found = {trial.overrides.get(SEED): read_gains(trial.workdir) for trial in finished}
    return {seed: gains for seed, gains in found.items() if gains is not None}


def _spread(results: Sequence[dict[str, Any]], split: str) -> Spread | None:
    return Spread(tuple(result[split][SELECTION_METRIC] for result in results)) if results else None


def _with_deviation(spread: Spread | None) -> str:
    if spread is None:
        return "-"
    return f"{spread.mean:.4f}" + ("" if spread.deviation is None else f" +- {spread.deviation:.4f}")


def _against_best(comparison: Comparison | None) -> str:
    if comparison is None:
        return "-"
    if comparison.difference is None:
        return comparison.verdict
    mark = MARK if comparison.verdict == UNSUPPORTED else " "
    return f"{mark} {comparison.difference:+.4f} (p {comparison.adjusted_p:.4f})"
