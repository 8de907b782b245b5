"""Signs that a data set is not what leave-one-out takes it for, on sequences made to show them."""

import numpy as np
import pytest

from idgenrec_jax.data.checks import share_in_key_order


def share(items, *sequences):
    place = {item: index for index, item in enumerate(items)}
    return share_in_key_order(items, [np.asarray([place[key] for key in keys.split()]) for keys in sequences])


@pytest.mark.parametrize(
    ("sequences", "expected"),
    [
        (["a b c d e", "e a b c d"], (0.5, 2)),
        (["e d c b a", "d c b a a"], (1.0, 2)),  # newest key first
        (["a a b b c", "a b c d"], (1.0, 1)),  # equal neighbours are in order; four items are too few
        (["a a a a a"], (0.0, 1)),  # one item over and over has no order
        (["a b"], (0.0, 0)),
        (["a b c d e", "e d c b a"], (0.5, 2)),  # up and down are two orders
    ],
)
def test_share_of_sequences_that_follow_their_keys(sequences, expected):
    assert share(["c", "a", "e", "b", "d"], *sequences) == expected


@pytest.mark.parametrize("sequence", ["8 9 10 11 100", "10 100 11 8 9"])
def test_numbers_are_in_order_as_numbers_or_as_text(sequence):
    assert share(["10", "9", "100", "8", "11"], sequence) == (1.0, 1)


def test_numbers_inside_keys_and_numbers_of_any_length():
    assert share(["i1", "i9", "i10", "j2", "k"], "i9 i10 i10 j2 k") == (1.0, 1)
    long = ["1" * 5000, "2" * 5000, "9", "10", "x"]
    assert share(long, " ".join([long[2], long[3], long[0], long[1], long[4]])) == (1.0, 1)
