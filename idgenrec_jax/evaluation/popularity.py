"""What everyone else bought: the ranking that needs no model, to compare with."""

import numpy as np

from idgenrec_jax.data.dataset import Dataset
from idgenrec_jax.evaluation.metrics import ranking_metrics


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
