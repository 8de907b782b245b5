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


def warm_start_batches(
    ids: RoundIds, config: Config, words: list[str], *, epoch: int, row_multiple: int = 1
) -> PackedBatches:
    """Return the batches of one warm-start epoch: every item's text, and its words as the target."""
    tokenizer, batch_size = ids.tokenizer, config.training.warm_start_batch_size
    targets = [[*tokens, tokenizer.eos_id] for tokens in tokenizer.encode_batch(words)]
    text_lengths, word_lengths = ([len(tokens) for tokens in rows] for rows in (ids.text_tokens, targets))
    shape = plan_shape(
        text_lengths,
        word_lengths,
        batch_size=batch_size,
        longest_prompt=max(text_lengths),
        longest_target=max(word_lengths),
        row_multiple=row_multiple,
    )
    generator = np.random.default_rng([config.training.seed, 0, epoch])
    return PackedBatches(ids.text_tokens, targets, shape=shape, batch_size=batch_size, generator=generator)
