"""The paired test against exact enumeration and SciPy, and Holm's correction against a worked example."""

import itertools
import json
import math

import numpy as np
import pytest
from scipy import stats

from idgenrec_jax.errors import InputError
from idgenrec_jax.evaluation.significance import holm, ndcg_gains, paired_differences, read_gains, sign_flip_p_value


@pytest.mark.parametrize("shift", [0.0, 0.2, 0.5])
def test_p_value_is_that_of_all_sign_choices(shift):
    differences = np.random.default_rng(1).normal(shift, 0.5, 11)
    observed = abs(differences.mean())
    means = [abs(np.mean(differences * signs)) for signs in itertools.product((1, -1), repeat=len(differences))]
    exact = np.mean(np.asarray(means) >= observed - 1e-12)
    by_scipy = stats.permutation_test((differences,), np.mean, permutation_type="samples", n_resamples=np.inf).pvalue
    assert exact == pytest.approx(by_scipy)
    # Four standard errors of 10,000 draws, and the observed choice that is counted among them.
    tolerance = 4 * math.sqrt(exact * (1 - exact) / 10_000) + 1e-4
    assert sign_flip_p_value(differences) == pytest.approx(exact, abs=tolerance)


def test_p_value_of_many_users_and_of_none_that_differ():
    differences = np.zeros(5000)
    differences[:400] = np.random.default_rng(2).choice([0.3, -0.2], 400)
    # At this size the randomisation and Student's distribution are all but the same.
    shrunk = differences - 0.7 * differences.mean()
    assert sign_flip_p_value(shrunk) == pytest.approx(stats.ttest_1samp(shrunk, 0).pvalue, abs=0.03)
    assert sign_flip_p_value(differences) == sign_flip_p_value(-differences) < 0.01
    assert sign_flip_p_value(np.zeros(10)) == 1.0


def test_holm_on_a_worked_example():
    # Sorted .005, .01, .03, .04 are multiplied by 4, 3, 2, 1; none may fall below the one before it.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1.0, 1.0] and holm([]) == []


def test_gains_are_paired_by_name(tmp_path):
    assert ndcg_gains(np.array([0, 1, 9, 10, -1])).tolist() == [1, 1 / math.log2(3), 1 / math.log2(11), 0, 0]
    runs = [{"ann": 1.0, "bob": 0.0, "cy": 0.5}, {"bob": 1.0, "ann": 0.0, "cy": 0.5}]
    assert paired_differences(runs, [{"cy": 0.25, "ann": 0.5}]).tolist() == [0.0, 0.25]
    assert read_gains(tmp_path) is None
    path = tmp_path / "target_ranks.json"
    path.write_text(json.dumps({"users": ["a", "b"], "validation": [-1, 0], "test": [0, 0]}))
    assert read_gains(tmp_path) == {"a": 0.0, "b": 1.0}
    path.write_text(json.dumps({"users": ["a", "b"], "validation": [0], "test": [0]}))
    with pytest.raises(InputError, match="2 users, but 1 validation ranks"):
        read_gains(tmp_path)


@pytest.mark.parametrize("user, rank", [("b", "0"), ("b", 0.5), ("b", None), ("b", -2), ("b", 10**30), (["b"], 0)])
def test_edited_ranks_are_one_line(tmp_path, user, rank):
    path = tmp_path / "target_ranks.json"
    path.write_text(json.dumps({"users": ["a", user], "validation": [0, rank], "test": [0, 0]}))
    with pytest.raises(InputError, match=f"^{path}: user .* has rank .*; delete it, and the trial is left out"):
        read_gains(tmp_path)


def test_the_gains_of_several_targets_are_added_for_each_user(tmp_path):
    """So that the mean over users is the metric, which is a mean over targets: here (1 + 0 + 1 + 0 + 1) / 5."""
    users = {"validation": ["a", "b", "b", "c", "c"], "test": ["a", "c"]}
    content = {"users": users, "validation": [0, -1, 0, 10, 0], "test": [0, 0]}
    (tmp_path / "target_ranks.json").write_text(json.dumps(content))
    gains = read_gains(tmp_path)
    assert gains == {"a": 3 / 5, "b": 3 / 5, "c": 3 / 5}
    assert np.mean(list(gains.values())) == pytest.approx(3 / 5)
    (tmp_path / "target_ranks.json").write_text(json.dumps({**content, "users": {"test": ["a", "c"]}}))
    with pytest.raises(InputError, match="users.validation is None, expected list; delete it"):
        read_gains(tmp_path)
