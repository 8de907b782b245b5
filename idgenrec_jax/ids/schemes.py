"""Ways to make an ID for every item without an ID generator, by name: a new one is a file and a line in `SCHEMES`.

A scheme only says which words it wants for each item. What makes the IDs unique is the same for all of them.
"""

from collections.abc import Callable, Sequence

import numpy as np

from idgenrec_jax.config import Config, IdsConfig
from idgenrec_jax.data.dataset import Dataset
from idgenrec_jax.data.text import Tokenizer
from idgenrec_jax.data.words import find_words
from idgenrec_jax.errors import unknown_name
from idgenrec_jax.ids.keywords import field_names, fields_of, telling_words
from idgenrec_jax.ids.table import IdTable, make_unique

GENERATED = "generated"
"""The name under which the ID generator writes the IDs; it is no scheme of this table, for it is trained."""

# A seed apart from those of training.
_SHUFFLE = 7

Scheme = Callable[[Dataset, Tokenizer, Config], list[str]]
"""(data, tokenizer, configuration) -> the words wanted for each item, in the order of the catalogue."""


def keywords(dataset: Dataset, tokenizer: Tokenizer, config: Config) -> list[str]:
    """Return the words that a warm start teaches: the most telling words of each item's own text, by TF-IDF.

    With `config.training.warm_start_cluster_words` those of its cluster lead, and as many of its own follow as fit.
    """
    training = config.training
    own = telling_words(
        dataset.item_texts,
        max_words=training.warm_start_words,
        max_tokens=training.warm_start_tokens,
        tokenizer=tokenizer,
    )
    if not training.warm_start_cluster_words:
        return own
    # Few runs need SciPy, which takes a third of a second to import.
    from idgenrec_jax.ids.clusters import cluster_words

    names = cluster_words(dataset, own, tokenizer, levels=training.warm_start_cluster_words)
    return [
        _fitting(
            [*name, *(word for word in words.split(" ") if word not in name)][: training.warm_start_words],
            tokenizer,
            training.warm_start_tokens,
        )
        for name, words in zip(names, own, strict=True)
    ]


def title(dataset: Dataset, tokenizer: Tokenizer, config: Config) -> list[str]:
    """Return the first words of each item's first field, its title in most data, up to the tokens of a warm start."""
    names = field_names(dataset.item_texts)
    limit = config.training.warm_start_tokens
    return [_fitting(find_words(fields_of(text, names)[0][1]), tokenizer, limit) for text in dataset.item_texts]


def _fitting(words: list[str], tokenizer: Tokenizer, max_tokens: int) -> str:
    """As many of the words as have at most `max_tokens` together; one, if there is one, in any case."""
    while len(words) > 1 and len(tokenizer.encode(" ".join(words))) > max_tokens:
        words = words[:-1]
    return " ".join(words)


def random_words(dataset: Dataset, tokenizer: Tokenizer, config: Config) -> list[str]:
    """Return words that say nothing of the item: the keywords of another, drawn by the seed. A floor for IDs."""
    words = keywords(dataset, tokenizer, config)
    order = np.random.default_rng([config.training.seed, _SHUFFLE]).permutation(len(words))
    return [words[item] for item in order]


SCHEMES: dict[str, Scheme] = {
    "keywords": keywords,
    "title": title,
    "random_words": random_words,
}


def has_own_ids(config: IdsConfig) -> bool:
    """Tell whether the IDs of round 0 come from a file or a scheme, not from the ID generator."""
    return bool(config.table) or config.scheme != GENERATED


def find_scheme(name: str) -> Scheme:
    """Return the scheme called `name`.

    Raises:
        InputError: there is none; the nearest name is suggested.
    """
    if name in SCHEMES:
        return SCHEMES[name]
    raise unknown_name("--config.ids.scheme", name, [GENERATED, *SCHEMES])


def unique_table(texts: Sequence[str], names: Sequence[str], tokenizer: Tokenizer) -> IdTable:
    """Return a table with these IDs, in order; one that is taken has the smallest number behind it that is free."""
    taken: set[tuple[int, ...]] = set()
    next_number: dict[str, int] = {}
    made = [
        make_unique(text, name, taken, tokenizer, next_number=next_number)
        for text, name in zip(texts, names, strict=True)
    ]
    return IdTable(tuple(names), tuple(text for text, _ in made), tuple(tokens for _, tokens in made))
