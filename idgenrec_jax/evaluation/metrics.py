"""Metrics of rankings with one relevant item a user, and their table; numpy only."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int

from idgenrec_jax.data.dataset import Dataset

HIT_CUTOFFS = (1, 5, 10, 20)
GAIN_CUTOFFS = (5, 10, 20)


def target_ranks(
    items: Int[np.ndarray, "users results"], targets: Int[np.ndarray, " users"]
) -> Int[np.ndarray, " users"]:
    """Return each target's place in its user's ranking, from 0; -1 where it was not recommended."""
    hits = items == targets[:, None]
    return np.where(hits.any(axis=1), hits.argmax(axis=1), -1)


def ranking_metrics(ranks: Int[np.ndarray, " users"], num_results: int) -> dict[str, float]:
    """Return the mean over users of HR@k, NDCG@k and the reciprocal rank (0 below `num_results` places).

    Each user has one relevant item, so NDCG@k is 1 / log2(rank + 2) within the cut-off and 0 beyond it.
    """
    found = ranks >= 0
    places = np.where(found, ranks, 0)
    metrics = {f"hr@{k}": float(np.mean(found & (ranks < k))) for k in HIT_CUTOFFS if k <= num_results}
    metrics |= {f"ndcg@{k}": float(np.mean(discounted_gains(ranks, k))) for k in GAIN_CUTOFFS if k <= num_results}
    return metrics | {"mrr": float(np.mean(np.where(found, 1.0 / (places + 1.0), 0.0)))}


def discounted_gains(ranks: Int[np.ndarray, " users"], cutoff: int) -> Float[np.ndarray, " users"]:
    """Return each user's NDCG@`cutoff`, 1 / log2(rank + 2) within the cut-off and 0 beyond; rank -1: not found."""
    found = (ranks >= 0) & (ranks < cutoff)
    return np.where(found, 1.0 / np.log2(np.where(found, ranks, 0) + 2.0), 0.0)


def popularity_metrics(dataset: Dataset, split: str, *, num_results: int) -> dict[str, float]:
    """Return the metrics of recommending everyone the `num_results` items most frequent in training.

    Items of equal frequency stand in the order of the catalogue.
    """
    counts = np.zeros(len(dataset.items), np.int64)
    for user in range(len(dataset.users)):
        np.add.at(counts, dataset.training_sequence(user), 1)
    order = np.argsort(-counts, kind="stable")
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    users = dataset.evaluation_users
    ranks = np.asarray([place[dataset.held_out(int(user), split)[1]] for user in users], np.int64)
    return ranking_metrics(np.where(ranks < num_results, ranks, -1), num_results)


def metrics_table(rows: Mapping[str, Mapping[str, float]], columns: Sequence[str] | None = None) -> str:
    """Return a plain-text table, one line per named row; a metric that a row lacks is a dash."""
    names = list(columns) if columns else list(dict.fromkeys(name for row in rows.values() for name in row))
    width = max(len(name) for name in rows)
    lines = [" " * width + "".join(f"  {name:>8}" for name in names)]
    for title, row in rows.items():
        cells = "".join(f"  {row[name]:8.4f}" if name in row else f"  {'-':>8}" for name in names)
        lines.append(f"{title:<{width}}{cells}")
    return "\n".join(lines)
