"""Names of clusters: items taken together share them, nothing that is held out has a part in them."""

import itertools

import numpy as np
import pytest
from held_out import with_others_held_out
from scipy.sparse import csr_array

from idgenrec_jax.config import Config
from idgenrec_jax.data.dataset import Dataset
from idgenrec_jax.data.sample import load_sample, sample_tokenizer
from idgenrec_jax.ids import clusters
from idgenrec_jax.ids.clusters import cluster_words
from idgenrec_jax.ids.schemes import keywords

SAMPLE, TOKENIZER = load_sample(), sample_tokenizer()
WORDS = keywords(SAMPLE, TOKENIZER, Config())


def make_dataset(sequences, num_items):
    users, items = (tuple(map(str, range(count))) for count in (len(sequences), num_items))
    return Dataset("shop", users, items, items, tuple(np.asarray(sequence, np.int32) for sequence in sequences))


def two_shops(texts):
    """Items 0 to 11, of which even and odd ones are never taken by the same user."""
    rng = np.random.default_rng(0)
    sequences = [(2 * rng.permutation(6) + user % 2).tolist() for user in range(60)]
    return make_dataset(sequences, 12), texts


def test_items_of_the_same_users_share_a_name_whatever_their_texts_say(tokenizer):
    # Every pair of neighbours in the catalogue has the same text.
    kinds = ("pen", "phone", "chair", "lamp", "desk", "paper")
    dataset, words = two_shops([f"{kinds[item // 2]} item" for item in range(12)])
    names = cluster_words(dataset, words, tokenizer, levels=1)
    assert len(set(names[0::2])) == len(set(names[1::2])) == 1
    assert names[0] != names[1] and all(name[0] in words[item].split() for item, name in enumerate(names[:2]))


def test_a_part_has_a_name_of_its_own_behind_that_of_its_cluster():
    names = cluster_words(SAMPLE, WORDS, TOKENIZER, levels=2)
    assert [name[:1] for name in names] == cluster_words(SAMPLE, WORDS, TOKENIZER, levels=1)
    by_cluster = {}
    for name in names:
        assert len(name) == 2 and name[0] != name[1]
        by_cluster.setdefault(name[0], []).append(name[1])
    # 14 clusters of 496 items, with a part for every six items.
    assert len(by_cluster) == 14
    for parts in by_cluster.values():
        assert len(set(parts)) <= round(len(parts) / 6)
        assert all(any(part in words.split() for words in WORDS) for part in parts)


def test_what_is_held_out_changes_no_name():
    other = with_others_held_out(SAMPLE)
    expected = cluster_words(SAMPLE, WORDS, TOKENIZER, levels=2)
    assert cluster_words(other, WORDS, TOKENIZER, levels=2) == expected


def test_the_names_are_the_best_there_are():
    rng = np.random.default_rng(3)
    has_word = (rng.random((30, 5)) < 0.4).astype(float)
    parts, lengths = np.array_split(rng.permutation(30), 3), np.asarray([1, 2, 1, 1, 3])
    names = clusters._names(parts, csr_array(has_word), lengths, taken=(2,))
    p, q = np.stack([has_word[part].mean(axis=0) for part in parts]), has_word.mean(axis=0)
    worth = np.where(p > 0, p * (1 + np.log(p / q)), 0) / lengths

    def total(words):
        return sum(worth[cluster, word] for cluster, word in enumerate(words))

    best = max(itertools.permutations([0, 1, 3, 4], 3), key=total)
    assert total(names) == pytest.approx(total(best))


def test_information_is_that_of_pairs_counted_by_hand():
    sequences = [[0, 1, 2, 3, 4, 0, 5], [2, 2, 1, 9, 9], [1, 3]]
    together = np.zeros((10, 10))
    for sequence in ([0, 1, 2, 3, 4], [2, 2, 1], [1, 3]):
        for (i, first), (j, second) in itertools.permutations(enumerate(sequence), 2):
            if first != second and abs(i - j) <= 3:
                together[first, second] += 1 / abs(i - j)
    of_item = together.sum(axis=1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        expected = np.log(together * together.sum() / (of_item * of_item.T))
    expected = np.where(together > 0, np.maximum(expected, 0), 0)
    found = clusters._information(make_dataset(sequences, 10))
    np.testing.assert_allclose(found.toarray(), expected, atol=1e-12)


@pytest.mark.parametrize(
    ("sequences", "words", "expected"),
    [
        ([[0]], ["pen"], [("pen",)]),
        ([[0, 1]], ["pen", "pen"], [("pen",), ("pen",)]),
        ([[0, 0, 0]], ["", ""], [(), ()]),
        ([], ["red pen", "red lamp", ""], [("red",), ("red",), ("red",)]),
    ],
)
def test_the_smallest_catalogues_have_names_too(tokenizer, sequences, words, expected):
    dataset = make_dataset(sequences, len(words))
    found = cluster_words(dataset, words, tokenizer, levels=2)
    assert [name[:1] for name in found] == expected


@pytest.mark.parametrize("sequences", [[], [[0, 1, 2, 3, 4]], [list(range(30))] * 3])
@pytest.mark.parametrize("text", ["pen", ""])
def test_items_that_nothing_tells_apart_make_fewer_clusters(tokenizer, sequences, text):
    names = cluster_words(make_dataset(sequences, 30), [text] * 30, tokenizer, levels=2)
    # 4 clusters were asked for; there is one word at most to name them.
    assert set(names) <= {(), ("pen",)} and (() in names or text)


def test_a_warm_start_teaches_them_in_front_of_an_items_own_words():
    config = Config().override({"training.warm_start_cluster_words": 2, "training.warm_start_tokens": 6})
    own = keywords(SAMPLE, TOKENIZER, config.override({"training.warm_start_cluster_words": 0}))
    names = cluster_words(SAMPLE, own, TOKENIZER, levels=2)
    for wanted, words, name in zip(keywords(SAMPLE, TOKENIZER, config), own, names, strict=True):
        expected = [*name, *(word for word in words.split() if word not in name)]
        taken = wanted.split()
        assert taken == expected[: len(taken)] and 3 <= len(taken) <= 5
        assert len(TOKENIZER.encode(wanted)) <= 6
        assert len(taken) == min(5, len(expected)) or len(TOKENIZER.encode(" ".join(expected[: len(taken) + 1]))) > 6
