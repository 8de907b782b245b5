"""The losses that a T5 can be trained with on (text, words) pairs, by their names in `--config.training.loss`.

A loss is one file here and one line in the table. It is a function

    loss(model, batch, dropout_key=None, *, part=None, whole=None) -> scalar

of a T5 and a `RecommenderBatch`, as `recommender_loss` is. The table holds places, not functions: the configuration
knows the names without importing JAX.
"""

import pkgutil
from collections.abc import Callable

SUPERVISED_LOSSES = {
    "vocabulary": "idgenrec_jax.training.recommender_loss:recommender_loss",
}


def supervised_loss(name: str) -> Callable:
    """Return the loss of this name."""
    return pkgutil.resolve_name(SUPERVISED_LOSSES[name])
