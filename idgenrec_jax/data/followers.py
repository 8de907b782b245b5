"""Which items follow which in the histories that are trained on: what neighbours are for the ID generator."""

from functools import cached_property

import numpy as np
from jaxtyping import Int

from idgenrec_jax.data.dataset import Dataset


class Followers:
    """The items that follow each item directly, in training sequences alone."""

    def __init__(self, dataset: Dataset):
        """Count the pairs of the training sequences; an item that follows itself is not among its followers."""
        self._num_items = len(dataset.items)
        sequences = [dataset.training_sequence(user) for user in range(len(dataset.users))]
        firsts = np.concatenate([np.zeros(0, np.int64), *(sequence[:-1] for sequence in sequences)])
        seconds = np.concatenate([np.zeros(0, np.int64), *(sequence[1:] for sequence in sequences)])
        apart = firsts != seconds
        # One number for each pair, so that one sort serves all. [pairs]
        pairs = np.sort(firsts[apart] * self._num_items + seconds[apart])
        self._followers = pairs % self._num_items
        self._starts = np.searchsorted(pairs, np.arange(self._num_items + 1) * self._num_items)

    def most_frequent(self, count: int) -> list[Int[np.ndarray, " followers"]]:
        """Return the `count` most frequent followers of each item, fewer where it has fewer; ties by item number."""
        return [
            values[np.lexsort((values, -counts))[:count]]
            for values, counts in (
                np.unique(self._followers[start:end], return_counts=True)
                for start, end in zip(self._starts[:-1], self._starts[1:], strict=True)
            )
        ]

    def draw(self, items: Int[np.ndarray, " items"], rng: np.random.Generator) -> Int[np.ndarray, " items"]:
        """Return a follower of each of the `items`, each as likely as it is frequent; -1 where there is none."""
        if not len(self._followers):
            return np.full(items.shape, -1, np.int64)
        counts = self._counts[items]
        # Behind the last of an item without followers there may be nothing.
        places = np.minimum(self._starts[items] + rng.integers(np.maximum(counts, 1)), len(self._followers) - 1)
        return np.where(counts > 0, self._followers[places], -1)

    @cached_property
    def _counts(self) -> Int[np.ndarray, " catalogue"]:
        return np.diff(self._starts)
