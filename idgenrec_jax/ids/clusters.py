"""Words that items share because the same users take them: the names of clusters of the training interactions.

What comes first in an ID decides with whom an item shares what the recommender learns. Words of its own text say what
an item is; which items are taken together is known from training sequences alone. So the catalogue is split twice, into
clusters and into parts of these, and each has a word of its items as its name.

An item's vector is made of two: the singular vectors of the positive pointwise mutual information of items that are
near each other in training sequences, and those of the words of its text, which place items that few have taken.
"""

import math
import warnings
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int
from scipy.cluster.vq import kmeans2
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_array
from scipy.sparse.linalg import svds

from idgenrec_jax.data.dataset import Dataset
from idgenrec_jax.data.text import Tokenizer

_REACH = 3
"""Items of a sequence so far apart count as near, each pair by one over its distance."""
_DIMENSIONS = 48
_TEXT_WEIGHT = 0.5
_ITEMS_PER_PART = 12
_SEED = 11
_ITERATIONS = 50


def cluster_words(
    dataset: Dataset, words: Sequence[str], tokenizer: Tokenizer, *, levels: int
) -> list[tuple[str, ...]]:
    """Return for each item the name of its cluster and, of two `levels`, that of the part of it that the item is in.

    `words` has the words of each item's text, separated by blanks, of which names are taken. No two clusters have the
    same name, nor two parts of a cluster. A part whose items have no word left has none. Of interactions only training
    sequences are read. The result is a pure function of the arguments.
    """
    has_word, vocabulary = _word_matrix(words)
    lengths = np.asarray([len(tokens) for tokens in tokenizer.encode_batch(vocabulary)], np.int64)
    vectors = _item_vectors(dataset, has_word)
    num_clusters = max(1, round(0.65 * math.sqrt(len(words))))
    everything = np.arange(len(words))
    names: list[tuple[str, ...]] = [()] * len(words)
    for items, name in _split(everything, vectors, has_word, lengths, num_clusters, taken=()):
        parts: list[tuple[Int[np.ndarray, " _items"], int | None]] = [(items, None)]
        if levels > 1:
            num_parts = max(1, round(len(items) / _ITEMS_PER_PART))
            parts = _split(items, vectors, has_word, lengths, num_parts, taken=() if name is None else (name,))
        for part, part_name in parts:
            found = tuple(vocabulary[word] for word in (name, part_name) if word is not None)
            for item in part.tolist():
                names[item] = found
    return names


def _split(
    items: Int[np.ndarray, " _items"],
    vectors: Float[np.ndarray, "items d"],
    has_word: csr_array,
    lengths: Int[np.ndarray, " words"],
    count: int,
    *,
    taken: Sequence[int],
) -> list[tuple[Int[np.ndarray, " _items"], int | None]]:
    """Split `items` into at most `count` clusters by k-means; return each with the word that names it, if there is one.

    Words in `taken` are not used.
    """
    if count == 1:
        labels = np.zeros(len(items), np.int64)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # SciPy warns of clusters without items, which are left out.
            labels = kmeans2(vectors[items], count, iter=_ITERATIONS, minit="++", missing="warn", rng=_SEED)[1]
    clusters = [items[labels == label] for label in np.unique(labels)]
    return list(zip(clusters, _names(clusters, has_word, lengths, taken), strict=True))


def _names(
    clusters: Sequence[Int[np.ndarray, " _items"]],
    has_word: csr_array,
    lengths: Int[np.ndarray, " words"],
    taken: Sequence[int],
) -> list[int | None]:
    """Return a word for each cluster, no word twice: one that many of its items have, and few of the others.

    With p the share of a cluster's items that have a word, and q that of all clusters, a name is worth
    p (1 + log(p / q)), divided by its tokens. The sum of what all names are worth is the largest there is.
    """
    counts = np.stack([has_word[cluster].sum(axis=0) for cluster in clusters])
    sizes = np.asarray([len(cluster) for cluster in clusters])
    p, q = counts / sizes[:, None], counts.sum(axis=0) / sizes.sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        worth = np.where(counts > 0, p * (1 + np.log(p / q)), 0.0) / np.maximum(lengths, 1)
    worth[:, list(taken)] = 0.0
    names: list[int | None] = [None] * len(clusters)
    for cluster, word in zip(*linear_sum_assignment(worth, maximize=True), strict=True):
        if worth[cluster, word] > 0:
            names[cluster] = int(word)
    return names


def _word_matrix(words: Sequence[str]) -> tuple[csr_array, list[str]]:
    """Return which item has which word, as ones in [items, words], and the words."""
    places: dict[str, int] = {}
    rows = [list(dict.fromkeys(places.setdefault(word, len(places)) for word in text.split())) for text in words]
    columns = np.asarray([word for row in rows for word in row], np.int64)
    numbers = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
    shape = (len(rows), len(places))
    return csr_array((np.ones(len(columns)), (numbers, columns)), shape=shape), [*places]


def _item_vectors(dataset: Dataset, has_word: csr_array) -> Float[np.ndarray, "items d"]:
    """Return a vector for each item: of whom it is taken with, and of what its text says."""
    rarity = np.log(len(dataset.items) / np.maximum(has_word.sum(axis=0), 1))
    together, said = (
        _unit(_singular_vectors(matrix)) for matrix in (_information(dataset), csr_array(has_word * rarity))
    )
    return np.concatenate([together, _TEXT_WEIGHT * said], axis=1)


def _information(dataset: Dataset) -> csr_array:
    """Return the positive pointwise mutual information, in nats, of items near each other in training sequences."""
    sequences = [dataset.training_sequence(user) for user in range(len(dataset.users))]
    # Of all training interactions, one after the other, the items and the users. [interactions]
    items = np.concatenate([np.zeros(0, np.int64), *sequences])
    users = np.repeat(np.arange(len(sequences)), [len(sequence) for sequence in sequences])
    firsts, seconds, weights = [], [], []
    for distance in range(1, _REACH + 1):
        of_one_user = users[:-distance] == users[distance:]
        earlier, later = items[:-distance][of_one_user], items[distance:][of_one_user]
        firsts += [earlier, later]
        seconds += [later, earlier]
        weights.append(np.full(2 * len(earlier), 1 / distance))
    # Each pair in both orders. [pairs]
    first, second, weight = (np.concatenate(parts) for parts in (firsts, seconds, weights))
    apart = first != second
    shape = (len(dataset.items), len(dataset.items))
    together = csr_array((weight[apart], (first[apart], second[apart])), shape=shape)
    together.sum_duplicates()
    often = np.maximum(together.sum(axis=1), 1e-9)
    rows = np.repeat(np.arange(len(often)), np.diff(together.indptr))
    information = np.log(together.data * often.sum() / (often[rows] * often[together.indices]))
    return csr_array((np.maximum(information, 0.0), together.indices, together.indptr), shape=shape)


def _singular_vectors(matrix: csr_array) -> Float[np.ndarray, "items d"]:
    """Return the left singular vectors of the largest singular values, each times the root of its value."""
    count = min(_DIMENSIONS, min(matrix.shape) - 1)
    if count < 1 or not matrix.nnz:
        return np.zeros((matrix.shape[0], 1))
    start = np.random.default_rng(_SEED).standard_normal(min(matrix.shape))
    left, values, _ = svds(matrix, k=count, v0=start)
    return left * np.sqrt(values)


def _unit(vectors: Float[np.ndarray, "items d"]) -> Float[np.ndarray, "items d"]:
    """Return the vectors at length one; one of zeros stays."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
