"""What everyone else bought: the ranking that needs no model, to compare with."""

import numpy as np
from jaxtyping import Int

from idgenrec_jax.data.dataset import Dataset
from idgenrec_jax.evaluation.metrics import ranking_metrics


def training_counts(dataset: Dataset) -> Int[np.ndarray, " items"]:
    """Return how often each item occurs in training."""
    sequences = [dataset.training_sequence(user) for user in range(len(dataset.users))]
    together = np.concatenate([np.zeros(0, np.int32), *sequences])
    return np.bincount(together, minlength=len(dataset.items))


def popularity_metrics(dataset: Dataset, split: str, *, num_results: int) -> dict[str, float]:
    """Return the metrics of recommending everyone the `num_results` items most frequent in training.

    Ties count against the target: it comes after all other items of its frequency.
    """
    counts = training_counts(dataset)
    users, positions = dataset.held_out_cases(split)
    targets = [dataset.sequences[user][position] for user, position in zip(users, positions, strict=True)]
    # The items at least as frequent as each target, less the target itself.
    ranks = len(counts) - np.searchsorted(np.sort(counts), counts[targets], side="left") - 1
    return ranking_metrics(np.where(ranks < num_results, ranks, -1), num_results)
