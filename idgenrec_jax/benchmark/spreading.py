"""Which of many inputs a work takes: spread over all, or nearest to a length."""

import numpy as np
from jaxtyping import Int


def spread(available: int, count: int) -> list[int]:
    """Return the middles of `count` equal parts of 0 .. available - 1; all of it where there are no more."""
    count = min(count, available)
    return [(2 * index + 1) * available // (2 * count) for index in range(count)]


def nearest(lengths: Int[np.ndarray, " available"], length: int, count: int) -> list[int]:
    """Return the places of the `count` lengths nearest to `length`, nearest first."""
    return np.argsort(np.abs(lengths - length), kind="stable")[:count].tolist()
