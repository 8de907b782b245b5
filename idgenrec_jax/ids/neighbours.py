"""What the ID generator reads for each item: its text and, where asked for, words of the items that follow it."""

from idgenrec_jax.config import Config
from idgenrec_jax.data.dataset import Dataset
from idgenrec_jax.data.followers import Followers
from idgenrec_jax.data.text import Tokenizer
from idgenrec_jax.ids.keywords import field_names, fields_of, telling_words

FIELD = "neighbours"
_WORDS = 2


def generator_texts(dataset: Dataset, tokenizer: Tokenizer, config: Config) -> tuple[str, ...]:
    """Return the text of every item as the ID generator reads it.

    With `config.data.neighbour_items` the most telling words of so many items stand behind the first field: those that
    follow the item most often in training sequences. Held-out interactions have no part in it. The words of
    collaborative neighbours were the largest single gain in GRAM (arXiv 2506.01673).
    """
    count = config.data.neighbour_items
    if not count:
        return dataset.item_texts
    words = telling_words(dataset.item_texts, max_words=_WORDS, tokenizer=tokenizer)
    names = field_names(dataset.item_texts)
    texts = []
    for text, followers in zip(dataset.item_texts, Followers(dataset).most_frequent(count), strict=True):
        told = " ".join(dict.fromkeys(word for item in followers.tolist() for word in words[item].split(" ")))
        if not told:
            texts.append(text)
            continue
        # Behind the first field, where no limit on the length of texts cuts it off.
        (name, value), *rest = fields_of(text, names)
        parts = [(name, value.strip().rstrip(";")), (FIELD, told), *rest]
        texts.append("; ".join(f"{name}: {value.strip().rstrip(';')}" for name, value in parts))
    return tuple(texts)
