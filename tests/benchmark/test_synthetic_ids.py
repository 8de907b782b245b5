"""Made-up IDs have the shape of the real ones."""

import numpy as np
import pytest

from idgenrec_jax.benchmark.synthetic_ids import synthetic_ids
from idgenrec_jax.errors import InputError


def real_ids(count=300, seed=0):
    rng = np.random.default_rng(seed)
    return [tuple(rng.integers(2, 50, rng.integers(2, 9)).tolist()) for _ in range(count)]


def test_ids_are_different_and_their_tokens_stand_where_real_ones_have_them():
    real = real_ids()
    made = synthetic_ids(real, 3000)
    assert len(set(made)) == len(made) == 3000
    at_position = [{ids[position] for ids in real if len(ids) > position} for position in range(9)]
    assert all(token in at_position[position] for ids in made for position, token in enumerate(ids))
    mean = np.mean([len(ids) for ids in real])
    assert np.mean([len(ids) for ids in made]) == pytest.approx(mean, rel=0.1)
    assert synthetic_ids(real, 3000) == made


def test_too_few_real_ids_are_an_error():
    with pytest.raises(InputError, match="--large_catalogue=1000: 3 IDs give only .* mixtures; lower it, or give"):
        synthetic_ids([(2, 3), (4, 5), (6,)], 1000)
