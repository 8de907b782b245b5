"""Popularity against a plain count."""

import numpy as np
import pytest
from plain_metrics import plain_metrics

from idgenrec_jax.data.dataset import Dataset
from idgenrec_jax.evaluation.popularity import popularity_metrics


def make_dataset():
    """60 users of 1 to 8 interactions with 30 items, the first two too short to evaluate."""
    rng = np.random.default_rng(1)
    lengths = [1, 2, *rng.integers(3, 9, 58)]
    return Dataset(
        name="shop",
        users=tuple(f"user{index}" for index in range(60)),
        items=tuple(f"item{index}" for index in range(30)),
        item_texts=("",) * 30,
        sequences=tuple(rng.integers(0, 30, length).astype(np.int32) for length in lengths),
    )


@pytest.mark.parametrize("split", ["validation", "test"])
def test_popularity_is_that_of_training_alone(split):
    dataset = make_dataset()
    training = [item for user in range(60) for item in dataset.training_sequence(user).tolist()]
    ranked = sorted(range(30), key=lambda item: (-training.count(item), item))
    targets = [dataset.held_out(int(user), split)[1] for user in dataset.evaluation_users]
    expected = plain_metrics([ranked] * len(targets), targets, (1, 5, 10, 20), (5, 10, 20), 30)
    assert popularity_metrics(dataset, split, num_results=30) == pytest.approx(expected)
    shorter = popularity_metrics(dataset, split, num_results=5)
    assert shorter == pytest.approx(plain_metrics([ranked[:5]] * len(targets), targets, (1, 5), (5,), 5))
