"""Which items follow which: counted by hand, and blind to what is held out."""

from collections import Counter

import numpy as np

from idgenrec_jax.data.dataset import Dataset
from idgenrec_jax.data.followers import Followers

NUM_ITEMS = 8


def make_dataset(sequences):
    users, items = (tuple(map(str, range(count))) for count in (len(sequences), NUM_ITEMS))
    return Dataset("shop", users, items, items, tuple(np.asarray(sequence, np.int32) for sequence in sequences))


def random_sequences():
    rng = np.random.default_rng(0)
    # Item 7 is never among them.
    return [rng.integers(0, NUM_ITEMS - 1, length).tolist() for length in (1, 2, 3, 4, 9, 12, 20)]


def counted(sequences):
    """For each item, how often each other follows it in training."""
    found = [Counter() for _ in range(NUM_ITEMS)]
    for sequence in sequences:
        training = sequence[:-2] if len(sequence) >= 3 else sequence
        for first, second in zip(training, training[1:], strict=False):
            if first != second:
                found[first][second] += 1
    return found


def test_the_most_frequent_followers_are_those_counted_by_hand():
    sequences = random_sequences()
    expected = [
        [item for item, _ in sorted(of_item.items(), key=lambda pair: (-pair[1], pair[0]))[:3]]
        for of_item in counted(sequences)
    ]
    assert [found.tolist() for found in Followers(make_dataset(sequences)).most_frequent(3)] == expected
    assert expected[7] == [] and max(map(len, expected)) == 3


def test_followers_are_drawn_as_often_as_they_follow():
    sequences = random_sequences()
    followers, rng = Followers(make_dataset(sequences)), np.random.default_rng(1)
    drawn = np.stack([followers.draw(np.arange(NUM_ITEMS), rng) for _ in range(4000)])
    for item, of_item in enumerate(counted(sequences)):
        if not of_item:
            assert (drawn[:, item] == -1).all()
            continue
        for other in range(NUM_ITEMS):
            np.testing.assert_allclose((drawn[:, item] == other).mean(), of_item[other] / of_item.total(), atol=0.04)


def test_held_out_items_are_nobodys_neighbours():
    sequences = random_sequences()
    other = [[*sequence[:-2], 7, 7] if len(sequence) >= 3 else sequence for sequence in sequences]
    for one, two in zip(
        Followers(make_dataset(sequences)).most_frequent(NUM_ITEMS),
        Followers(make_dataset(other)).most_frequent(NUM_ITEMS),
        strict=True,
    ):
        np.testing.assert_array_equal(one, two)


def test_data_without_pairs_has_no_followers():
    followers = Followers(make_dataset([[0], [1, 2, 3]]))
    assert not any(map(len, followers.most_frequent(2)))
    assert (followers.draw(np.arange(NUM_ITEMS), np.random.default_rng(0)) == -1).all()
