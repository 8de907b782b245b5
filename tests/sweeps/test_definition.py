"""Sweeps: what their helpers make, and the named ones."""

import pytest

from idgenrec_jax.errors import InputError
from idgenrec_jax.presets import preset
from idgenrec_jax.sweeps.definition import (
    Choice,
    LogUniform,
    Uniform,
    chain,
    grid,
    load_space,
    load_sweep,
    product,
    sample,
    together,
    with_seeds,
)
from idgenrec_jax.sweeps.named import NAMED

BASE = preset("tiny")


def test_helpers_make_the_trials_they_say():
    assert grid({"a": [1, 2], "b": [3, 4]}) == [{"a": 1, "b": 3}, {"a": 1, "b": 4}, {"a": 2, "b": 3}, {"a": 2, "b": 4}]
    assert together({"a": [1, 2], "b": [3, 4]}) == [{"a": 1, "b": 3}, {"a": 2, "b": 4}]
    assert chain([{"a": 1}], [{"b": 2}]) == [{"a": 1}, {"b": 2}]
    assert product([{"a": 1}, {"a": 2}], [{"a": 3, "b": 4}]) == [{"a": 3, "b": 4}, {"a": 3, "b": 4}]
    assert with_seeds([{"a": 1}], [5, 6]) == [{"a": 1, "training.seed": 5}, {"a": 1, "training.seed": 6}]
    with pytest.raises(ValueError, match="shorter"):
        together({"a": [1, 2], "b": [3]})


def test_a_random_trial_depends_on_its_index_alone():
    values = {"a": Uniform(1, 3), "b": Uniform(0.0, 1.0), "c": LogUniform(1e-6, 1e-2), "d": Choice(("x", "y"))}
    few, many = sample(5, 7, values), sample(200, 7, values)
    assert many[:5] == few and sample(5, 8, values) != few
    assert {trial["a"] for trial in many} == {1, 2, 3} and {trial["d"] for trial in many} == {"x", "y"}
    assert all(0 <= trial["b"] <= 1 and 1e-6 <= trial["c"] <= 1e-2 for trial in many)
    whole = [trial["n"] for trial in sample(300, 7, {"n": LogUniform(1, 100)})]
    assert set(map(type, whole)) == {int} and min(whole) == 1 and max(whole) <= 100
    assert 90 < sum(number < 10 for number in whole) < 190
    assert 60 < sum(trial["c"] < 1e-4 for trial in many) < 140


@pytest.mark.parametrize("name", NAMED)
def test_named_sweeps_fit_the_configuration_and_compare_something(name):
    trials = load_sweep(name, NAMED, BASE)
    without_seed = [{key: value for key, value in trial.items() if key != "training.seed"} for trial in trials]
    assert len(trials) == 3 * len({tuple(trial.items()) for trial in without_seed}) >= 6


def test_a_sweep_from_a_file_and_what_can_be_wrong_with_it(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from idgenrec_jax.sweeps.definition import grid\n"
        "def sweep():\n    return grid({'training.rounds': [1, 2]})\n"
        "def other():\n    return [{'training.seed': 3}]\n"
        "def bad():\n    return [{}, {'training.round': 3}]\n"
        "def empty():\n    return []\n"
        "def numbered():\n    return [{3: 1}]\n"
    )
    assert load_sweep(str(path), NAMED, BASE) == [{"training.rounds": 1}, {"training.rounds": 2}]
    assert load_sweep(f"{path}:other", NAMED, BASE) == [{"training.seed": 3}]
    with pytest.raises(InputError, match="trial 1: .*training.round"):
        load_sweep(f"{path}:bad", NAMED, BASE)
    with pytest.raises(InputError, match='trial 0: found 3 as a field, expected "section.field"'):
        load_sweep(f"{path}:numbered", NAMED, BASE)
    with pytest.raises(InputError, match="expected a list"):
        load_sweep(f"{path}:empty", NAMED, BASE)
    with pytest.raises(InputError, match="has no function 'missing'"):
        load_sweep(f"{path}:missing", NAMED, BASE)
    with pytest.raises(InputError, match="no such file, nor one of the named sweeps: alternation, cluster_words"):
        load_sweep("nowhere", NAMED, BASE)


@pytest.mark.parametrize(
    ("field", "distribution", "message"),
    [
        ("training.weight_decay", "LogUniform(0, 1)", "expected low above 0"),
        ("training.weight_decay", "LogUniform(-1.0, 1.0)", "expected low above 0"),
        ("training.weight_decay", "Uniform(2.0, 1.0)", "low is above high"),
        ("training.weight_decay", "Uniform(float('nan'), 1.0)", "found the bound nan, expected a finite number"),
        ("training.weight_decay", "LogUniform(0.1, float('inf'))", "found the bound inf"),
        ("training.rounds", "Uniform(True, 3)", "found the bound True"),
        ("training.rounds", "Uniform(0, 3)", "found 0, expected at least 1"),
        ("data.user_ids", "Choice(())", "expected a tuple of one value or more"),
        ("data.user_ids", "Choice('none')", "expected a tuple of one value or more"),
        ("data.user_ids", "Choice(('none', 'all'))", "found 'all', expected one of"),
        ("data.user_ids", "['none']", "expected Uniform, LogUniform or Choice"),
    ],
)
def test_a_space_that_cannot_be_drawn_from_is_refused_when_it_is_read(tmp_path, field, distribution, message):
    """By an adaptive search and by random trials alike, with the field's name; before any trial runs."""
    path = tmp_path / "mine.py"
    path.write_text(
        "from idgenrec_jax.sweeps.definition import Choice, LogUniform, Uniform, sample\n"
        f"def space():\n    return {{'training.seed': Choice((1,)), {field!r}: {distribution}}}\n"
        "def sweep():\n    return sample(20, 0, space())\n"
    )
    with pytest.raises(InputError, match=f"^--sweep={path}: space: .*{field}: .*{message}"):
        load_space(str(path), BASE)
    with pytest.raises(InputError, match=f"^--sweep={path}: .*{field}: "):
        load_sweep(str(path), NAMED, BASE)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return 1 / 0", r"mine.py:2: ZeroDivisionError: division by zero"),
        ("retrun 1", r"mine.py: SyntaxError: invalid syntax"),
        ("return list(zip([1], [], strict=True))", "mine.py:2: ValueError: zip"),
    ],
)
def test_a_file_with_an_error_of_its_own_is_one_line(tmp_path, body, message):
    path = tmp_path / "mine.py"
    path.write_text(f"def sweep():\n    {body}\n")
    with pytest.raises(InputError, match=message) as caught:
        load_sweep(str(path), NAMED, BASE)
    assert "\n" not in str(caught.value)


def test_what_is_drawn_stays_within_its_bounds():
    for low, high in ((1e-5, 1e-3), (0.1, 0.3), (3, 5)):
        drawn = [trial["n"] for trial in sample(300, 1, {"n": LogUniform(low, high)})]
        assert low <= min(drawn) and max(drawn) <= high
    assert sample(2, 0, {"n": LogUniform(0.3, 0.3)}) == [{"n": 0.3}] * 2
