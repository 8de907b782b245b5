"""Whether two configurations differ: a paired randomisation test over users, with Holm's correction."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from idgenrec_jax import run_files
from idgenrec_jax.errors import InputError
from idgenrec_jax.evaluation.metrics import discounted_gains
from idgenrec_jax.files import read_json

FLIPS = 10_000
_FLIPS_AT_ONCE = 200
_SEED = 0
_MOST_RESULTS = 2**31


def read_gains(workdir: Path) -> dict[str, float] | None:
    """Return every user's NDCG@10 on the validation split of a finished run, None where it wrote no ranks.

    Users are the sample of a test, however many targets they have: targets of one user are not independent. Of several
    the gains are added, and divided by the mean number of targets of a user, so that the mean over users is the metric.

    Raises:
        InputError: the file of ranks is not whole, or was edited.
    """
    path = workdir / run_files.RANKS
    if not path.exists():
        return None
    remedy = "delete it, and the trial is left out of the comparison"
    found = read_json(path, remedy=remedy, fields={"users": (list, dict), "validation": list})
    if isinstance(found["users"], dict):
        read_json(path, remedy=remedy, fields={"users.validation": list})
    users = found["users"]["validation"] if isinstance(found["users"], dict) else found["users"]
    ranks = found["validation"]
    if len(users) != len(ranks):
        raise InputError(f"{path}: {len(users)} users, but {len(ranks)} validation ranks; {remedy}")
    for user, rank in zip(users, ranks, strict=True):
        if not isinstance(user, str) or type(rank) is not int or not -1 <= rank < _MOST_RESULTS:
            pair = f"user {user!r:.40} has rank {rank!r:.40}"
            raise InputError(f"{path}: {pair}, expected a name and a number from -1 on; {remedy}")
    gains = dict.fromkeys(users, 0.0)
    for user, gain in zip(users, ndcg_gains(np.asarray(ranks, np.int64)).tolist(), strict=True):
        gains[user] += gain
    return {user: gain * (len(gains) / len(users)) for user, gain in gains.items()}


def ndcg_gains(ranks: Int[np.ndarray, " users"]) -> Float[np.ndarray, " users"]:
    """Return the NDCG@10 of one target each; ranks count from 0, -1 is a target that was not found."""
    return discounted_gains(ranks, run_files.SELECTION_CUTOFF)


def paired_differences(
    runs: Sequence[Mapping[str, float]], others: Sequence[Mapping[str, float]]
) -> Float[np.ndarray, " users"]:
    """Return, for each user that all runs have, the mean gain in `runs` less the mean gain in `others`."""
    users = sorted(set.intersection(*(set(gains) for gains in [*runs, *others])))

    def mean(several: Sequence[Mapping[str, float]]) -> np.ndarray:
        return np.asarray([[gains[user] for user in users] for gains in several], np.float64).mean(axis=0)

    return mean(runs) - mean(others)


def sign_flip_p_value(differences: Float[np.ndarray, " users"]) -> float:
    """Return the two-sided p-value of Fisher's randomisation test that paired differences have mean 0.

    Under the null hypothesis each user's difference could as well have had the other sign. The value is the share of
    10,000 random choices of signs (a fixed seed; the observed one is counted among them) whose mean is at least as far
    from 0. Smucker, Allan and Carterette (CIKM 2007) recommend this test for comparing rankers: unlike Student's, it
    assumes no distribution, which per-user gains, mostly zeros, are far from having.
    """
    differing = differences[differences != 0]
    if not len(differing):
        return 1.0
    rng = np.random.default_rng(_SEED)
    observed = abs(differing.sum())
    # Sums of the same numbers in another order differ by rounding.
    threshold = observed - 1e-9 * np.abs(differing).sum()
    as_far = 0
    for start in range(0, FLIPS, _FLIPS_AT_ONCE):
        rows = min(_FLIPS_AT_ONCE, FLIPS - start)
        random_bytes = rng.integers(0, 256, (rows, math.ceil(len(differing) / 8)), dtype=np.uint8)
        flipped = np.unpackbits(random_bytes, axis=1, count=len(differing))
        sums = differing.sum() - 2 * (flipped @ differing)
        as_far += int(np.count_nonzero(np.abs(sums) >= threshold))
    return (as_far + 1) / (FLIPS + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p-values of a family of tests, adjusted by Holm's step-down procedure, in the order given."""
    adjusted, largest = [0.0] * len(p_values), 0.0
    for place, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[index]))
        adjusted[index] = largest
    return adjusted
