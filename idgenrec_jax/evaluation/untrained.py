"""What rankings without training reach: popularity, transitions and text of the last item, and the two together.

They are the floor that a model has to beat. A ranking is a function of a batch of histories that returns the scores of
all items, float32 [users, items], none negative. Transitions are counted in training sequences alone.

Texts cost most: a product for each different word of an item's text, for every item and every item that a history ends
in. `MOST_SCORES` bounds it. One core takes 4 s for both splits of Amazon Beauty, and about two minutes for a million
users of a million items with 25 words each, of whom a thousand are ranked; memory there grows by 1 GB.
"""

import itertools
from array import array
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import csr_array, diags_array

from idgenrec_jax.data.dataset import Dataset
from idgenrec_jax.data.words import WordSplitter, find_words
from idgenrec_jax.evaluation.metrics import SPLITS, ranking_metrics
from idgenrec_jax.evaluation.popularity import training_counts
from idgenrec_jax.ids.keywords import field_names, fields_of

Histories = Sequence[Int[np.ndarray, " _"]]
Scorer = Callable[[Histories], Float[np.ndarray, "users items"]]

RANKINGS = ("popularity", "transitions", "text", "transitions_and_text")
"""The rankings without training: of all items by count; by what followed the last one; by its text; by both scores."""

NUM_RESULTS = 20
MOST_SCORES = 2**30
"""So many scores are computed at most for a split, those of a sample of its targets where all would be more."""

_SCORES_AT_ONCE = 2**23


class Popularity:
    """Scores every item by how often it occurs in training, for every user alike."""

    def __init__(self, dataset: Dataset):
        """Count the items of the training sequences."""
        self._counts = training_counts(dataset).astype(np.float32)

    def __call__(self, histories: Histories) -> Float[np.ndarray, "users items"]:
        """Return the scores; all rows are one array."""
        return np.broadcast_to(self._counts, (len(histories), len(self._counts)))


class Transitions:
    """Scores an item by how often it follows the last item of a history in training.

    A score is log(1 + count), over the greatest of the last item's followers, which so has 1; others have 0.
    """

    def __init__(self, dataset: Dataset):
        """Count the pairs of neighbours in the training sequences."""
        sequences = [dataset.training_sequence(user) for user in range(len(dataset.users))]
        firsts = np.concatenate([np.zeros(0, np.int32), *(sequence[:-1] for sequence in sequences)])
        seconds = np.concatenate([np.zeros(0, np.int32), *(sequence[1:] for sequence in sequences)])
        num_items = len(dataset.items)
        # [items, items]; pairs that occur several times are added up.
        counts = csr_array((np.ones(len(firsts)), (firsts, seconds)), shape=(num_items, num_items))
        counts.data = np.log1p(counts.data)
        greatest = counts.max(axis=1).toarray()
        self._scores = _scaled_rows(counts, greatest)

    def __call__(self, histories: Histories) -> Float[np.ndarray, "users items"]:
        """Return the scores; those of an empty history are 0."""
        return _of_last_items(histories, lambda items: self._scores[items].toarray())


class TextSimilarity:
    """Scores an item by the cosine of its text and that of the last item of a history, as TF-IDF vectors.

    A word weighs (1 + log(count)) * log((1 + items) / (1 + items with it)), by natural logarithms. Words are those of
    `data.words` in lower case, of scripts without blanks the pieces that recur; names of fields are none.
    """

    def __init__(self, dataset: Dataset):
        """Read the texts of the catalogue."""
        counts = _word_counts(dataset.item_texts)
        num_items, num_words = counts.shape
        having = np.bincount(counts.indices, minlength=num_words)
        rarity = np.log((1 + num_items) / (1 + having))
        counts.data = (1 + np.log(counts.data)) * rarity[counts.indices]
        self._vectors = _scaled_rows(counts, np.sqrt((counts * counts).sum(axis=1)))

    def __call__(self, histories: Histories) -> Float[np.ndarray, "users items"]:
        """Return the scores; those of an empty history, and of items without words, are 0."""
        # [items, words] @ [words, last items]
        return _of_last_items(histories, lambda items: (self._vectors @ self._vectors[items].toarray().T).T)


@dataclass(frozen=True)
class Floor:
    """What rankings without training reach on `targets` targets of a split, a sample of them or all.

    `metrics` holds "hr@10" and the like by the name of the ranking.
    """

    split: str
    targets: int
    is_sample: bool
    metrics: dict[str, dict[str, float]]


def measure_floors(
    dataset: Dataset, splits: Sequence[str] = SPLITS, *, seed: int = 0, most_scores: int = MOST_SCORES
) -> list[Floor]:
    """Return what rankings without training reach on each of the `splits` that holds anything out.

    Ties count against the target. Where targets times items exceed `most_scores`, targets are drawn by `seed`.
    """
    rankings = (Popularity(dataset), Transitions(dataset), TextSimilarity(dataset))
    floors = (_measure_floor(dataset, split, rankings, seed=seed, most_scores=most_scores) for split in splits)
    return [floor for floor in floors if floor.targets]


def _measure_floor(
    dataset: Dataset, split: str, rankings: tuple[Scorer, Scorer, Scorer], *, seed: int, most_scores: int
) -> Floor:
    """The rankings on one split, a block of users at a time."""
    users, positions = dataset.held_out_cases(split)
    num_drawn = max(1, most_scores // len(dataset.items))
    is_sample = num_drawn < len(users)
    if is_sample:
        drawn = np.sort(np.random.default_rng(seed).choice(len(users), num_drawn, replace=False))
        users, positions = users[drawn], positions[drawn]
    cases = list(zip(users.tolist(), positions.tolist(), strict=True))
    histories = [dataset.sequences[user][:position] for user, position in cases]
    targets = np.asarray([dataset.sequences[user][position] for user, position in cases], dtype=np.int64)
    # Users with the same last item stand together, for it is scored once a block.
    order = np.argsort(_last_items(histories), kind="stable")
    size = max(1, _SCORES_AT_ONCE // len(dataset.items))
    ranks: dict[str, list[np.ndarray]] = {}
    for start in range(0, len(order), size):
        block = order[start : start + size]
        popularity, transitions, text = (
            ranking([histories[place] for place in block]) for ranking in rankings
        )
        for name, scores in zip(RANKINGS, (popularity, transitions, text, transitions + text), strict=True):
            ranks.setdefault(name, []).append(ranks_in(scores, targets[block]))
    metrics = {name: ranking_metrics(np.concatenate(blocks), NUM_RESULTS) for name, blocks in ranks.items()}
    return Floor(split, len(users), is_sample, metrics)


def ranks_in(scores: Float[np.ndarray, "users items"], targets: Int[np.ndarray, " users"]) -> Int[np.ndarray, " users"]:
    """Return the place of each user's target among all items, from 0; -1 where it is not in the first NUM_RESULTS.

    Ties count against the target: it comes after all others of its score.
    """
    of_targets = np.take_along_axis(scores, targets[:, None], axis=1)
    ranks = (scores >= of_targets).sum(axis=1) - 1
    return np.where(ranks < NUM_RESULTS, ranks, -1)


def _last_items(histories: Histories) -> Int[np.ndarray, " users"]:
    """The last item of each history, -1 where it is empty."""
    return np.asarray([history[-1] if len(history) else -1 for history in histories], dtype=np.int64)


def _of_last_items(
    histories: Histories, scores_of: Callable[[Int[np.ndarray, " distinct"]], Float[np.ndarray, "distinct items"]]
) -> Float[np.ndarray, "users items"]:
    """The scores that depend on the last item alone, computed once for each of them."""
    last = _last_items(histories)
    distinct, places = np.unique(last, return_inverse=True)
    scores = scores_of(np.maximum(distinct, 0))
    scores[distinct < 0] = 0.0
    # [distinct, items] -> [users, items]
    return scores[places]


def _word_counts(texts: Sequence[str]) -> csr_array:
    """How often each text has each word, [texts, words]."""
    names, splitter = field_names(texts), WordSplitter(texts)
    # A word that is new gets the next number.
    numbers: defaultdict[str, int] = defaultdict(itertools.count().__next__)
    # 4 bytes a word where a list would take 8 and more: a million texts have a hundred million of them.
    words, ends = array("i"), array("q", [0])
    for text in texts:
        for _, value in fields_of(text, names):
            found = find_words(value.lower())
            if not value.isascii():
                found = [piece for word in found for piece in splitter.split(word)]
            words.extend(map(numbers.__getitem__, found))
        ends.append(len(words))
    places = np.frombuffer(words, np.int32) if words else np.zeros(0, np.int32)
    counts = csr_array(
        (np.ones(len(places), np.float32), places.copy(), np.frombuffer(ends, np.int64)),
        shape=(len(texts), max(1, len(numbers))),
    )
    counts.sum_duplicates()
    return counts


def _scaled_rows(matrix: csr_array, by: Float[np.ndarray, " rows"]) -> csr_array:
    """The matrix in float32 with each row divided by its number; rows of 0 stay."""
    return csr_array(diags_array(1 / np.where(by > 0, by, 1.0)) @ matrix, dtype=np.float32)
