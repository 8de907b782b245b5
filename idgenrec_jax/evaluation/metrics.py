"""Metrics of rankings with one relevant item each, and their table; numpy only.

A metric is a function of (ranks, cut-off) that returns a value for each user or, where users have several targets, for
each target. A new one is a function in a file of its own and a line in METRICS; every file and table of results has it
then, as `NAME@CUTOFF`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

SPLITS = ("validation", "test")


class Metric(NamedTuple):
    """How users are scored: `per_user` of their ranks and a cut-off, at each of `cutoffs`.

    Ranks count from 0; -1 is a target that was not recommended. Cut-offs above the number of results are left out. No
    cut-offs: the number of results is the cut-off.
    """

    per_user: Callable[[Int[np.ndarray, " users"], int], Any]
    cutoffs: tuple[int, ...] = ()


def hits(ranks: Int[np.ndarray, " users"], cutoff: int) -> Bool[np.ndarray, " users"]:
    """Return whether each user's target is among the first `cutoff` results."""
    return (ranks >= 0) & (ranks < cutoff)


def discounted_gains(ranks: Int[np.ndarray, " users"], cutoff: int) -> Float[np.ndarray, " users"]:
    """Return each user's NDCG@`cutoff`: 1 / log2(rank + 2) within the cut-off, 0 beyond it."""
    found = hits(ranks, cutoff)
    return np.where(found, 1.0 / np.log2(np.where(found, ranks, 0) + 2.0), 0.0)


def reciprocal_ranks(ranks: Int[np.ndarray, " users"], cutoff: int) -> Float[np.ndarray, " users"]:
    """Return 1 / (rank + 1) for each user within the cut-off, 0 beyond it."""
    found = hits(ranks, cutoff)
    return np.where(found, 1.0 / (np.where(found, ranks, 0) + 1.0), 0.0)


METRICS: dict[str, Metric] = {
    "hr": Metric(hits, cutoffs=(1, 5, 10, 20)),
    "ndcg": Metric(discounted_gains, cutoffs=(5, 10, 20)),
    "mrr": Metric(reciprocal_ranks),
}


def target_ranks(
    items: Int[np.ndarray, "users results"],
    scores: Float[np.ndarray, "users results"],
    targets: Int[np.ndarray, " users"],
) -> Int[np.ndarray, " users"]:
    """Return each target's place in its user's ranking, from 0; -1 where it was not recommended.

    Ties count against the target: it comes after all others of its score.
    """
    # [users, results] -> [users]
    is_target = items == targets[:, None]
    target_scores = np.where(is_target, scores, np.inf).min(axis=1)
    return np.where(is_target.any(axis=1), (scores >= target_scores[:, None]).sum(axis=1) - 1, -1)


def shared_share(
    expected: Int[np.ndarray, "users results"], found: Int[np.ndarray, "users results"], cutoff: int
) -> float:
    """Return how much of each user's first `cutoff` items of `expected` is among the first of `found`: the mean share.

    Places without an item hold -1. A user of whom nothing is expected counts as found in full.
    """
    expected, found = expected[:, :cutoff], found[:, :cutoff]
    is_item = expected >= 0
    # [users, cutoff, cutoff] -> [users, cutoff]
    is_shared = (expected[:, :, None] == found[:, None, :]).any(axis=2) & is_item
    counts = is_item.sum(axis=1)
    return float(np.mean(np.where(counts > 0, is_shared.sum(axis=1) / np.maximum(counts, 1), 1.0)))


def ranking_metrics(ranks: Int[np.ndarray, " users"], num_results: int) -> dict[str, float]:
    """Return the mean over users, or targets, of every metric, by NAME@CUTOFF, for rankings of `num_results`."""
    return {
        f"{name}@{cutoff}": float(np.mean(metric.per_user(ranks, cutoff)))
        for name, metric in METRICS.items()
        for cutoff in metric.cutoffs or (num_results,)
        if cutoff <= num_results
    }


def with_cutoffs(results: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run's results with every metric named by its cut-off.

    Versions before 0.2 wrote "mrr" for what is "mrr@20" with 20 beams. Where a file does not tell its beams, the name
    stays.
    """
    protocol = results.get("protocol")
    num_beams = protocol.get("num_beams") if isinstance(protocol, Mapping) else None

    def renamed(values: Any) -> Any:
        if num_beams is None or not isinstance(values, Mapping):
            return values
        return {f"mrr@{num_beams}" if name == "mrr" else name: renamed(value) for name, value in values.items()}

    return {name: renamed(value) if name in (*SPLITS, "popularity") else value for name, value in results.items()}


def results_table(results: Mapping[str, Any]) -> str:
    """Return the validation and test metrics of `results.json` beside popularity's, as plain text."""
    results = with_cutoffs(results)
    rows = {split: results[split] for split in SPLITS}
    rows |= {f"popularity, {split}": results["popularity"][split] for split in SPLITS}
    return metrics_table(rows, list(results["test"]))


def metrics_table(rows: Mapping[str, Mapping[str, float]], columns: Sequence[str] | None = None) -> str:
    """Return a plain-text table, one line per named row; a metric that a row lacks is a dash."""
    names = list(columns) if columns else list(dict.fromkeys(name for row in rows.values() for name in row))
    width = max(len(name) for name in rows)
    lines = [" " * width + "".join(f"  {name:>8}" for name in names)]
    for title, row in rows.items():
        cells = "".join(f"  {row[name]:8.4f}" if name in row else f"  {'-':>8}" for name in names)
        lines.append(f"{title:<{width}}{cells}")
    return "\n".join(lines)
