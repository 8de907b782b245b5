"""The warm start: before the first round the ID generator learns to write the telling words of an item's own text."""

import numpy as np

from idgenrec_jax.config import Config
from idgenrec_jax.data.batches import TARGET_MULTIPLE, BucketedBatches, bucket_widths, round_up
from idgenrec_jax.ids.keywords import telling_words
from idgenrec_jax.ids.rounds import RoundIds

NUM_BUCKETS = 3


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


def warm_start_batches(ids: RoundIds, config: Config, words: list[str], *, epoch: int) -> BucketedBatches:
    """Return the batches of one warm-start epoch: every item's text, and its words as the target."""
    tokenizer = ids.tokenizer
    targets = [[*tokens, tokenizer.eos_id] for tokens in tokenizer.encode_batch(words)]
    return BucketedBatches(
        ids.text_tokens,
        targets,
        widths=bucket_widths([len(tokens) for tokens in ids.text_tokens], NUM_BUCKETS),
        target_width=round_up(max(len(target) for target in targets), TARGET_MULTIPLE),
        batch_size=config.training.warm_start_batch_size,
        generator=np.random.default_rng([config.training.seed, 0, epoch]),
    )
