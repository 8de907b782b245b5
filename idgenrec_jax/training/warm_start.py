"""The warm start: before the first round the ID generator learns to write the telling words of an item's own text."""

from collections.abc import Sequence

import numpy as np

from idgenrec_jax.config import TrainingConfig
from idgenrec_jax.data.packing import PackedBatches, lengths_of, plan_shape


class WarmStart:
    """The epochs of the warm start: every item's text, and its words as the target."""

    def __init__(
        self,
        texts: Sequence[Sequence[int]],
        targets: Sequence[Sequence[int]],
        training: TrainingConfig,
        *,
        row_multiple: int = 1,
    ):
        """Find the shape that all batches have; their rows are a multiple of `row_multiple`.

        `texts` and `targets` hold the tokens of each item's text and of its words, EOS included.
        """
        self._texts, self._targets, self._training = texts, targets, training
        text_lengths, word_lengths = lengths_of(texts), lengths_of(targets)
        self._shape = plan_shape(
            text_lengths,
            word_lengths,
            batch_size=training.warm_start_batch_size,
            longest_prompt=int(text_lengths.max()),
            longest_target=int(word_lengths.max()),
            row_multiple=row_multiple,
        )

    def epoch(self, epoch: int) -> PackedBatches:
        """Return the batches of one epoch, which follow from the seed and its number."""
        return PackedBatches(
            self._texts,
            self._targets,
            shape=self._shape,
            batch_size=self._training.warm_start_batch_size,
            rng=np.random.default_rng([self._training.seed, 0, epoch]),
        )
