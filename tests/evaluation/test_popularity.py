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
    targets = [dataset.held_out(int(user), split)[1] for user in dataset.evaluation_users]
    # A list for each user, in which the target comes after all other items of its frequency.
    ranked = [
        sorted(range(30), key=lambda item, target=target: (-training.count(item), item == target)) for target in targets
    ]
    expected = plain_metrics(ranked, targets, (1, 5, 10, 20), (5, 10, 20), 30)
    assert popularity_metrics(dataset, split, num_results=30) == pytest.approx(expected)
    shorter = popularity_metrics(dataset, split, num_results=5)
    assert shorter == pytest.approx(plain_metrics([row[:5] for row in ranked], targets, (1, 5), (5,), 5))


def test_ties_count_against_the_target():
    # Trained on: item 0 three times, items 1 and 2 twice each, item 3 once, item 4 never.
    rows = ([0, 1, 2, 1, 2], [0, 1, 2, 3, 4], [0, 3, 0, 1])
    dataset = Dataset(
        name="shop",
        users=("ann", "bob", "cy"),
        items=tuple(f"item{index}" for index in range(5)),
        item_texts=("",) * 5,
        sequences=tuple(np.asarray(row, np.int32) for row in rows),
    )
    # Validation targets 1, 3 and 0 have the places 2 (after the tie with 2), 3 and 0.
    found = popularity_metrics(dataset, "validation", num_results=5)
    assert found["hr@1"] == pytest.approx(1 / 3) and found["hr@5"] == 1
    assert found["mrr@5"] == pytest.approx((1 / 3 + 1 / 4 + 1) / 3)
