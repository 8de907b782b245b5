"""Rankings without training against a plain computation, item by item."""

import dataclasses
import math
import re
from collections import Counter

import numpy as np
import pytest
from plain_metrics import plain_metrics

from idgenrec_jax.data.dataset import Dataset
from idgenrec_jax.evaluation.untrained import (
    RANKINGS,
    Popularity,
    TextSimilarity,
    Transitions,
    measure_floors,
    ranks_in,
)

WORDS = ["red", "blue", "kettle", "jug", "verano", "kesto", "big", "small"]


def make_dataset(seed=1, num_items=30):
    rng = np.random.default_rng(seed)
    texts = [" ".join(rng.choice(WORDS, rng.integers(1, 7))) for _ in range(num_items)]
    lengths = [1, 2, *rng.integers(3, 9, 58)]
    return Dataset(
        name="shop",
        users=tuple(map(str, range(60))),
        items=tuple(f"item{number}" for number in range(num_items)),
        item_texts=tuple("" if number == 3 else f"title: {text}; brand: Kesto" for number, text in enumerate(texts)),
        sequences=tuple(rng.integers(0, num_items, length).astype(np.int32) for length in lengths),
    )


def plain_scores(dataset, history):
    """The scores of all items for one history, by the definitions."""
    training = [dataset.training_sequence(user).tolist() for user in range(len(dataset.users))]
    items = range(len(dataset.items))
    popularity = [sum(row.count(item) for row in training) for item in items]
    pairs = Counter(pair for row in training for pair in zip(row, row[1:], strict=False))
    last = int(history[-1])
    most = max([pairs[last, item] for item in items])
    transitions = [math.log1p(pairs[last, item]) / math.log1p(most) if most else 0.0 for item in items]
    counts = [Counter(re.sub("title: |brand: ", "", text).lower().replace(";", "").split()) for text in
              dataset.item_texts]  # fmt: skip
    having = Counter(word for count in counts for word in count)
    vectors = [
        {word: (1 + math.log(n)) * math.log((1 + len(counts)) / (1 + having[word])) for word, n in count.items()}
        for count in counts
    ]

    def cosine(one, other):
        length = math.hypot(*one.values()) * math.hypot(*other.values())
        return sum(weight * other.get(word, 0.0) for word, weight in one.items()) / length if length else 0.0

    text = [cosine(vectors[last], vector) for vector in vectors]
    both = [first + second for first, second in zip(transitions, text, strict=True)]
    return dict(zip(RANKINGS, (popularity, transitions, text, both), strict=True))


def test_scores_are_those_of_a_plain_computation():
    dataset = make_dataset()
    histories = [dataset.sequences[user] for user in range(10)]
    for name, scorer in zip(RANKINGS, (Popularity, Transitions, TextSimilarity), strict=False):
        scores = scorer(dataset)(histories)
        assert scores.dtype == np.float32
        expected = [plain_scores(dataset, history)[name] for history in histories]
        np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-6, err_msg=name)


def with_several_targets(dataset):
    """The data set with a split of its own, in which users have no, one or two targets of each kind."""
    lengths = np.asarray([len(sequence) for sequence in dataset.sequences])
    numbers = np.arange(len(lengths))
    ends = np.stack([lengths - numbers % 3 - numbers % 2, lengths - numbers % 3], axis=1)
    return dataclasses.replace(dataset, boundaries=np.maximum(ends, 0))


@pytest.mark.parametrize(
    ("scores_at_once", "given_split"),
    [(2**23, False), (90, False), (2**23, True)],
    ids=["together", "in blocks", "given split"],
)
def test_metrics_are_those_of_plain_rankings(monkeypatch, scores_at_once, given_split):
    """Whether users are ranked together or three at a time, and have one target or several."""
    monkeypatch.setattr("idgenrec_jax.evaluation.untrained._SCORES_AT_ONCE", scores_at_once)
    dataset = with_several_targets(make_dataset()) if given_split else make_dataset()
    validation, test = measure_floors(dataset)
    assert (validation.split, test.split) == ("validation", "test")
    for floor in (validation, test):
        targets = zip(*dataset.held_out_cases(floor.split), strict=True)
        cases = [(dataset.sequences[user][:place], int(dataset.sequences[user][place])) for user, place in targets]
        assert floor.targets == len(cases) and (given_split or len(cases) == 58) and not floor.is_sample
        scores = [plain_scores(dataset, history) for history, _ in cases]
        for name in RANKINGS:
            # Rounded: equal texts have equal scores, however they were added up.
            ranked = [
                sorted(range(30), key=lambda item, row=row, target=target: (-round(row[name][item], 5), item == target))
                for row, (_, target) in zip(scores, cases, strict=True)
            ]
            expected = plain_metrics(
                [row[:20] for row in ranked], [target for _, target in cases], (1, 5, 10, 20), (5, 10, 20), 20
            )
            assert floor.metrics[name] == pytest.approx(expected), (floor.split, name)


def test_users_are_drawn_by_a_seed_where_there_are_too_many():
    dataset = make_dataset()
    (drawn,) = measure_floors(dataset, ["test"], most_scores=30 * 20 + 29)
    assert drawn.targets == 20 and drawn.is_sample
    assert measure_floors(dataset, ["test"], most_scores=30 * 20 + 29) == [drawn]
    others = [measure_floors(dataset, ["test"], most_scores=600, seed=seed)[0].metrics for seed in range(1, 5)]
    assert any(metrics != drawn.metrics for metrics in others)


def test_an_empty_history_has_no_last_item():
    dataset = make_dataset()
    none = [np.zeros(0, np.int32), dataset.sequences[5]]
    for scorer in (Transitions(dataset), TextSimilarity(dataset)):
        scores = scorer(none)
        assert not scores[0].any() and np.array_equal(scores[1], scorer(none[1:])[0])


def test_held_out_items_leave_scores_as_they_are():
    """No leak: what is held out counts in no ranking."""
    dataset = make_dataset()
    sequences = [sequence.copy() for sequence in dataset.sequences]
    for user in dataset.evaluation_users:
        sequences[user][-2:] = (sequences[user][-2:] + 1) % 30
    changed = dataclasses.replace(dataset, sequences=tuple(sequences))
    histories = [sequence[:1] for sequence in dataset.sequences]
    for scorer in (Popularity, Transitions, TextSimilarity):
        np.testing.assert_array_equal(scorer(dataset)(histories), scorer(changed)(histories))


def test_ties_count_against_the_target():
    scores = np.asarray([[3, 1, 1, 0], [0, 0, 0, 0]], np.float32)
    assert ranks_in(scores, np.asarray([1, 0])).tolist() == [2, 3]
    assert ranks_in(np.zeros((1, 21), np.float32), np.asarray([4])).tolist() == [-1]


def test_words_of_any_script_and_no_names_of_fields():
    texts = ["title: चाय Kettle", "title: KETTLE", "title: title", "title: 保温瓶 red", "title: 保温瓶 blue"]
    dataset = Dataset("shop", ("u",), tuple("abcde"), tuple(texts), (np.arange(5, dtype=np.int32),))
    scores = TextSimilarity(dataset)([np.asarray([item]) for item in range(5)])
    assert np.diag(scores) == pytest.approx(1)
    likeness = scores - np.diag(np.diag(scores))
    assert sorted(zip(*np.nonzero(likeness), strict=True)) == [(0, 1), (1, 0), (3, 4), (4, 3)]


@pytest.mark.parametrize(
    ("texts", "sequence"),
    [(["title: red"], [0, 0, 0, 0]), (["", "", "title: red"], [0, 1, 2, 0, 1]), (["", "!"], [1, 1, 1]), (["a"], [0])],
)
def test_one_item_blank_texts_and_repeated_items(texts, sequence):
    items = tuple(map(str, range(len(texts))))
    dataset = Dataset("shop", ("u",), items, tuple(texts), (np.asarray(sequence, np.int32),))
    floors = measure_floors(dataset)
    assert len(floors) == (2 if len(sequence) > 2 else 0)
    for floor in floors:
        for metrics in floor.metrics.values():
            assert metrics["hr@20"] == 1 and metrics["hr@1"] in (0, 1)
