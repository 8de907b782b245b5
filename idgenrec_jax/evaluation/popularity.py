"""What everyone else bought: the ranking that needs no model, to compare with."""

import numpy as np

from idgenrec_jax.data.dataset import Dataset
from idgenrec_jax.evaluation.metrics import ranking_metrics


def popularity_metrics(dataset: Dataset, split: str, *, num_results: int) -> dict[str, float]:
    """Return the metrics of recommending everyone the `num_results` items most frequent in training.

    Ties count against the target: it comes after all other items of its frequency.
    """
    counts = np.zeros(len(dataset.items), np.int64)
    for user in range(len(dataset.users)):
        np.add.at(counts, dataset.training_sequence(user), 1)
    users, positions = dataset.held_out_cases(split)
    targets = [dataset.sequences[user][position] for user, position in zip(users, positions, strict=True)]
    # The items at least as frequent as each target, less the target itself.
    ranks = len(counts) - np.searchsorted(np.sort(counts), counts[targets], side="left") - 1
    return ranking_metrics(np.where(ranks < num_results, ranks, -1), num_results)
