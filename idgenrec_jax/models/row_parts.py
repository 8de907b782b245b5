"""Rows of a batch computed a few at a time where that is faster: on a CPU, whose caches hold what a few rows need."""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax import Array
from jaxtyping import Float

PART_BYTES = 2**21
"""Bytes of the states, in float32, of the rows computed together.

T5-small on 2 cores, 64 texts of 256 tokens: the encoder takes 5.0 s for all at once, 4.1 s in parts of this size.
"""


def in_parts(
    function: Callable[..., Any],
    states: Float[Array, "batch positions d_model"],
    *more: Array,
    positions: int | None = None,
) -> Any:
    """Returns `function(states, *more)`, a tree of arrays of as many rows, none of which sees another.

    `more` are arrays of as many rows, too. `positions` says how many of a row are computed at once, where these are not
    those of its states. On a CPU the rows are computed in equal parts, one part after the other;
    elsewhere, and where they lie on several devices, all at once. What a CPU exports for other platforms has the parts.
    """
    batch, length, d_model = states.shape
    size = _rows_of_part(batch, 4 * (positions or length) * d_model)
    if size == batch or jax.default_backend() != "cpu" or jax.typeof(states).sharding.mesh.size > 1:
        return function(states, *more)
    parts = tuple(array.reshape(-1, size, *array.shape[1:]) for array in (states, *more))
    results = jax.lax.map(lambda part: function(*part), parts)
    return jax.tree.map(lambda array: array.reshape(batch, *array.shape[2:]), results)


def _rows_of_part(batch: int, row_bytes: int) -> int:
    """The divisor of `batch` whose rows come nearest to PART_BYTES, by their quotient."""
    divisors = [size for size in range(1, batch + 1) if batch % size == 0]
    return min(divisors, key=lambda size: abs(math.log(size * row_bytes / PART_BYTES)))
