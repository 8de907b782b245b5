"""The warm start: before the first round the ID generator learns to write the telling words of an item's own text."""

import numpy as np

from idgenrec_jax.config import Config
from idgenrec_jax.data.packing import PackedBatches, plan_shape
from idgenrec_jax.ids.keywords import telling_words
from idgenrec_jax.ids.rounds import RoundIds


def warm_start_words(ids: RoundIds, config: Config) -> list[str]:
    """Return what the generator shall write for each item: the words of a given ID table, else its telling words."""
    if ids.given is not None:
        return list(ids.given.texts)
    training = config.training
    return telling_words(
        ids.dataset.item_texts,
        max_words=training.warm_start_words,
        max_tokens=training.warm_start_tokens,
        tokenizer=ids.tokenizer,
    )


class WarmStart:
    """The epochs of the warm start: every item's text, and its words as the target."""

    def __init__(self, ids: RoundIds, config: Config, *, row_multiple: int = 1):
        """Find the words, and the shape that all batches have; their rows are a multiple of `row_multiple`."""
        self._texts, self._training = ids.text_tokens, config.training
        words = ids.tokenizer.encode_batch(warm_start_words(ids, config))
        self._targets = [[*tokens, ids.tokenizer.eos_id] for tokens in words]
        text_lengths, word_lengths = ([len(tokens) for tokens in rows] for rows in (self._texts, self._targets))
        self._shape = plan_shape(
            text_lengths,
            word_lengths,
            batch_size=config.training.warm_start_batch_size,
            longest_prompt=max(text_lengths),
            longest_target=max(word_lengths),
            row_multiple=row_multiple,
        )

    def epoch(self, epoch: int) -> PackedBatches:
        """Return the batches of one epoch, which follow from the seed and its number."""
        return PackedBatches(
            self._texts,
            self._targets,
            shape=self._shape,
            batch_size=self._training.warm_start_batch_size,
            generator=np.random.default_rng([self._training.seed, 0, epoch]),
        )
