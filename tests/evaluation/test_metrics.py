"""Metrics against their definitions, their names, and their table."""

import numpy as np
import pytest
from plain_metrics import plain_metrics

from idgenrec_jax.evaluation import metrics as metrics_module
from idgenrec_jax.evaluation.metrics import (
    Metric,
    metrics_table,
    ranking_metrics,
    shared_share,
    target_ranks,
    with_cutoffs,
)
from idgenrec_jax.evaluation.ranker import Ranking


def test_metrics_are_those_of_a_plain_computation():
    rng = np.random.default_rng(0)
    items = np.stack([rng.permutation(40)[:20] for _ in range(200)]).astype(np.int32)
    targets = rng.integers(0, 40, 200).astype(np.int32)
    items[:20, 5:] = -1
    scores = np.tile(-np.arange(20, dtype=np.float32), (200, 1))
    ranking = Ranking(np.arange(200, dtype=np.int32), targets, items, scores, 0.5)
    expected = plain_metrics(items.tolist(), targets.tolist(), (1, 5, 10, 20), (5, 10, 20), 20)
    assert ranking.metrics() == pytest.approx(expected, abs=1e-12)
    assert list(ranking.metrics()) == list(expected)
    assert 0 < expected["hr@1"] < expected["hr@20"] < 1


def test_metrics_of_known_places():
    items = np.array([[4, 2, 3], [1, 2, 3], [7, 8, 9], [5, 6, -1]])
    scores = np.array([[-1.0, -2.0, -3.0], [-1.0, -2.0, -3.0], [-1.0, -2.0, -3.0], [-1.0, -2.0, -np.inf]])
    assert target_ranks(items, scores, np.array([4, 3, 1, 5])).tolist() == [0, 2, -1, 0]
    metrics = ranking_metrics(np.array([0, 9, 10, -1]), 20)
    assert metrics["hr@1"] == 0.25 and metrics["hr@10"] == 0.5 and metrics["hr@20"] == 0.75
    assert metrics["ndcg@10"] == pytest.approx((1 + 1 / np.log2(11)) / 4)
    assert metrics["mrr@20"] == pytest.approx((1 + 0.1 + 1 / 11) / 4)


def test_ties_count_against_the_target():
    items = np.array([[4, 2, 3, 5], [4, 2, 3, 5], [4, 2, 3, 5], [4, 2, 3, 5], [4, 2, -1, -1]])
    scores = np.array([[-1.0, -2.0, -2.0, -3.0]] * 3 + [[-1.0] * 4, [-1.0, -1.0, -np.inf, -np.inf]])
    # After a tie with 3; alone in first place; after a tie with 2; after all others; after 2, before the missing.
    assert target_ranks(items, scores, np.array([2, 4, 3, 4, 4])).tolist() == [2, 0, 2, 3, 1]


def test_the_share_of_the_expected_that_is_found():
    expected = np.array([[1, 2, 3, 4], [5, 6, -1, -1], [-1, -1, -1, -1]])
    found = np.array([[3, 9, 1, 2], [6, -1, -1, -1], [-1, -1, -1, -1]])
    # Missing places are nobody's; of no item, all are found.
    assert shared_share(expected, found, 3) == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    assert shared_share(expected, found, 2) == pytest.approx((0 / 2 + 1 / 2 + 1) / 3)


def test_cut_offs_above_the_number_of_results_are_not_reported():
    assert set(ranking_metrics(np.array([0, -1]), 10)) == {"hr@1", "hr@5", "hr@10", "ndcg@5", "ndcg@10", "mrr@10"}
    assert set(ranking_metrics(np.array([0]), 1)) == {"hr@1", "mrr@1"}


def test_the_table_lines_up_and_dashes_what_is_missing():
    rows = {"test": {"hr@1": 0.5, "mrr": 0.25}, "popularity, test": {"hr@1": 0.125}}
    assert metrics_table(rows).split("\n") == [
        "                      hr@1       mrr",
        "test                0.5000    0.2500",
        "popularity, test    0.1250         -",
    ]
    assert metrics_table(rows, ["mrr"]).split("\n")[1] == "test                0.2500"


def test_a_new_metric_is_a_function_and_a_line_in_the_table(monkeypatch):
    def found_first(ranks, cutoff):
        return 1.0 - np.clip(ranks, 0, cutoff) / cutoff

    monkeypatch.setitem(metrics_module.METRICS, "share", Metric(found_first, cutoffs=(5, 50)))
    found = ranking_metrics(np.array([0, 5, 9]), 10)
    assert found["share@5"] == pytest.approx(1 / 3) and "share@50" not in found


def test_what_older_versions_wrote_gets_the_names_of_today():
    old = {
        "validation": {"hr@1": 0.5, "mrr": 0.25},
        "test": {"mrr": 0.125},
        "popularity": {"test": {"mrr": 0.0625}},
        "protocol": {"num_beams": 20},
        "users": 3,
    }
    assert with_cutoffs(old) == {
        "validation": {"hr@1": 0.5, "mrr@20": 0.25},
        "test": {"mrr@20": 0.125},
        "popularity": {"test": {"mrr@20": 0.0625}},
        "protocol": {"num_beams": 20},
        "users": 3,
    }
    assert with_cutoffs(with_cutoffs(old)) == with_cutoffs(old)
    for edited in ({"test": {"mrr": 0.125}}, {"test": {"mrr": 0.125}, "protocol": "of old"}):
        assert with_cutoffs(edited) == edited, "its beams are not known"
