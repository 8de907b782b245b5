"""The losses that a T5 can be trained with on (text, words) pairs, by their names in `--config.training.softmax`.

A loss is one file here and one line in the table. It is a function

    loss(model, batch, dropout_key=None, *, part=None, whole=None) -> scalar

of a T5 and a `SupervisedBatch`, as `recommender_loss` is. That over the catalogue is given its choices, too. With every
other name the search normalises over the vocabulary.
"""

from collections.abc import Callable

from idgenrec_jax.config import CATALOGUE
from idgenrec_jax.errors import look_up
from idgenrec_jax.training.catalogue_loss import catalogue_loss
from idgenrec_jax.training.recommender_loss import recommender_loss

SUPERVISED_LOSSES: dict[str, Callable] = {
    CATALOGUE: catalogue_loss,
    "vocabulary": recommender_loss,
}


def supervised_loss(name: str) -> Callable:
    """Return the loss of this name.

    Raises:
        InputError: there is none; the nearest name is suggested.
    """
    return look_up(SUPERVISED_LOSSES, name, "--config.training.softmax")
