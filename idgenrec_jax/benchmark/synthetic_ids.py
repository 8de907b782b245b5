"""Made-up IDs in the shape of real ones, for catalogues of any size."""

from collections.abc import Sequence

import numpy as np

from idgenrec_jax.errors import InputError

_TRIES = 50


def synthetic_ids(real: Sequence[Sequence[int]], count: int, *, seed: int = 0) -> list[tuple[int, ...]]:
    """Return `count` different token sequences: the beginning of one real ID, then the end of another.

    The cut falls at the same position in both, so lengths, first tokens and the tokens of each position are distributed
    as in `real`, while prefixes are shared by more and more IDs as the catalogue grows. Pure function of its arguments.

    Raises:
        InputError: `real` has too few different beginnings and ends for `count`.
    """
    rng = np.random.default_rng(seed)
    ids = [tuple(int(token) for token in sequence) for sequence in real]
    found: dict[tuple[int, ...], None] = {}
    for _ in range(_TRIES):
        missing = count - len(found)
        if not missing:
            break
        heads, tails = rng.integers(len(ids), size=(2, missing + missing // 4 + 1))
        cuts = rng.random(len(heads))
        for head, tail, cut in zip(heads, tails, cuts, strict=True):
            first, second = ids[head], ids[tail]
            position = 1 + int(cut * (min(len(first), len(second)) - 1))
            found[first[:position] + second[position:]] = None
            if len(found) == count:
                break
    if len(found) < count:
        raise InputError(
            f"--large_catalogue={count}: {len(ids)} IDs give only {len(found)} mixtures; lower it, or give more items"
        )
    return list(found)
