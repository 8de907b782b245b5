"""What the ID generator reads of an item's neighbours: their words behind the first field, from training alone."""


import numpy as np
from held_out import with_others_held_out

from idgenrec_jax.config import Config
from idgenrec_jax.data.sample import load_sample, sample_tokenizer
from idgenrec_jax.ids.keywords import fields_of, telling_words
from idgenrec_jax.ids.neighbours import FIELD, generator_texts

SAMPLE, TOKENIZER = load_sample(), sample_tokenizer()
CONFIG = Config().override({"data.neighbour_items": 2})


def test_without_neighbours_the_texts_are_the_items_own():
    assert generator_texts(SAMPLE, TOKENIZER, Config()) is SAMPLE.item_texts


def test_words_of_the_most_frequent_followers_stand_behind_the_title():
    texts = generator_texts(SAMPLE, TOKENIZER, CONFIG)
    words = telling_words(SAMPLE.item_texts, max_words=2, tokenizer=TOKENIZER)
    counts = np.zeros((len(SAMPLE.items),) * 2, int)
    for user in range(len(SAMPLE.users)):
        sequence = SAMPLE.training_sequence(user)
        np.add.at(counts, (sequence[:-1], sequence[1:]), 1)
    np.fill_diagonal(counts, 0)
    names = frozenset({"title", "brand", "categories", "description", FIELD})
    for item in range(0, len(texts), 37):
        followers = [other for other in np.argsort(-counts[item], kind="stable")[:2] if counts[item, other]]
        expected = list(dict.fromkeys(" ".join(words[other] for other in followers).split()))
        (title, _), (second, told), *_ = fields_of(texts[item], names)
        assert title == "title" and second == FIELD
        assert told.strip().rstrip(";").split() == expected
        # Nothing of the text itself is lost.
        own = fields_of(SAMPLE.item_texts[item], names)
        kept = [pair for pair in fields_of(texts[item], names) if pair[0] != FIELD]
        assert [(name, value.strip("; ")) for name, value in kept] == [
            (name, value.strip("; ")) for name, value in own
        ]


def test_what_is_held_out_changes_no_text():
    other = with_others_held_out(SAMPLE)
    assert generator_texts(other, TOKENIZER, CONFIG) == generator_texts(SAMPLE, TOKENIZER, CONFIG)
