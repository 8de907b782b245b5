"""What a sweep is made of: overrides `{"section.field": value}`, one dictionary a trial, and ways to make them."""

import dataclasses
import itertools
import math
import runpy
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from idgenrec_jax.config import Config
from idgenrec_jax.errors import InputError

Overrides = dict[str, Any]
"""Values by the name of their field, `section.field`."""
Sweep = list[Overrides]


@dataclasses.dataclass(frozen=True)
class Uniform:
    """Numbers between `low` and `high`, all as likely; whole ones where both are."""

    low: int | float
    high: int | float

    def draw(self, rng: np.random.Generator) -> int | float:
        """Return one of them; `high` is among whole numbers."""
        if isinstance(self.low, int) and isinstance(self.high, int):
            return int(rng.integers(self.low, self.high, endpoint=True))
        return float(rng.uniform(self.low, self.high))


@dataclasses.dataclass(frozen=True)
class LogUniform:
    """Numbers between `low` and `high`, both positive, every factor as likely; whole ones where both are."""

    low: int | float
    high: int | float

    def draw(self, rng: np.random.Generator) -> int | float:
        """Return one of them; `high` is among whole numbers."""
        if isinstance(self.low, int) and isinstance(self.high, int):
            drawn = math.exp(rng.uniform(math.log(self.low - 0.5), math.log(self.high + 0.5)))
            return min(max(round(drawn), self.low), self.high)
        # Rounding may take exp(log(high)) beyond it, and beyond the field's own limit.
        drawn = math.exp(rng.uniform(math.log(self.low), math.log(self.high)))
        return float(min(max(drawn, self.low), self.high))


@dataclasses.dataclass(frozen=True)
class Choice:
    """One of some values, all as likely."""

    values: Sequence[Any]

    def draw(self, rng: np.random.Generator) -> Any:
        """Return one of them."""
        return self.values[int(rng.integers(len(self.values)))]


Space = dict[str, Uniform | LogUniform | Choice]
"""What an adaptive search chooses from, by the name of the field."""


def grid(values: Mapping[str, Sequence[Any]]) -> Sweep:
    """Return every combination of the values of each field; the last field changes fastest."""
    return [dict(zip(values, combination, strict=True)) for combination in itertools.product(*values.values())]


def together(values: Mapping[str, Sequence[Any]]) -> Sweep:
    """Return the first values of all fields, then the second ones, and so on.

    Raises ValueError unless all fields have as many.
    """
    return [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]


def chain(*sweeps: Sweep) -> Sweep:
    """Return the trials of all sweeps, one after the other."""
    return [dict(overrides) for sweep in sweeps for overrides in sweep]


def product(*sweeps: Sweep) -> Sweep:
    """Return every combination of one trial of each sweep; where two set one field, the later counts."""
    return [
        {name: value for overrides in combination for name, value in overrides.items()}
        for combination in itertools.product(*sweeps)
    ]


def sample(count: int, seed: int, values: Space) -> Sweep:
    """Return `count` random trials; trial i depends on the seed and on i alone, not on `count`.

    Raises:
        InputError: a field has no distribution, or one from which nothing can be drawn.
    """
    check_distributions(values)
    trials = []
    for index in range(count):
        rng = np.random.default_rng([seed, index])
        trials.append({name: distribution.draw(rng) for name, distribution in values.items()})
    return trials


def with_seeds(sweep: Sweep, seeds: Sequence[int]) -> Sweep:
    """Return every trial once with each seed, the seeds of one trial side by side."""
    return product(sweep, grid({"training.seed": seeds}))


def load_sweep(name: str, named: Mapping[str, Callable[[], Sweep]], base: Config) -> Sweep:
    """Return the trials of a sweep: one of `named`, or those that the function `sweep` of a Python file returns.

    FILE:FUNCTION names another function of the file.

    Raises:
        InputError: no such name, file or function; it returns no list of overrides; or a trial does not fit `base`.
    """
    if name in named:
        trials = named[name]()
    else:
        trials = _call(name, "sweep", otherwise=f"nor one of the named sweeps: {', '.join(named)}")
    if not isinstance(trials, list) or not trials or not all(isinstance(trial, dict) for trial in trials):
        found = type(trials).__name__
        raise InputError(f"--sweep={name}: expected a list of overrides, not an empty one; found {found}")
    for index, overrides in enumerate(trials):
        _check(name, f"trial {index}", overrides, base)
    return trials


def load_space(name: str, base: Config) -> Space:
    """Return what the function `space` of a Python file returns; FILE:FUNCTION names another function.

    Raises:
        InputError: no such file or function; it returns no space; or its limits do not fit `base`.
    """
    space = _call(name, "space", otherwise="and an adaptive search needs one")
    if not isinstance(space, dict) or not space:
        raise InputError(
            f'--sweep={name}: expected a dictionary {{"section.field": Uniform, LogUniform or Choice}}; found '
            f"{' '.join(repr(space).split())[:80]}"
        )
    try:
        check_distributions(space)
    except InputError as error:
        raise InputError(f"--sweep={name}: space: {error}") from error
    for field, one in space.items():
        for value in one.values if isinstance(one, Choice) else (one.low, one.high):
            _check(name, "space", {field: value}, base)
    return space


def _call(name: str, default_function: str, *, otherwise: str) -> Any:
    """Return what a function of a Python file returns, `name` being FILE or FILE:FUNCTION."""
    path, _, function = name.partition(":")
    if not Path(path).is_file():
        raise InputError(f"--sweep={name}: no such file, {otherwise}")
    try:
        made = runpy.run_path(path).get(function or default_function)
        if callable(made):
            return made()
    except InputError as error:
        raise InputError(f"--sweep={name}: {error}") from error
    except Exception as error:
        place = path if isinstance(error, SyntaxError) else f"{path}:{_line_of(error, path)}"
        raise InputError(f"--sweep={name}: {place}: {type(error).__name__}: {error}; mend the file") from error
    raise InputError(
        f"--sweep={name}: {path} has no function {function or default_function!r}; write one, or name it"
    )


def _line_of(error: Exception, path: str) -> int:
    """The last line of a file that an error passed through."""
    lines = [frame.lineno or 0 for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    return lines[-1] if lines else 1


def check_distributions(values: Mapping[str, Any]) -> None:
    """Check that something can be drawn for every field.

    Raises:
        InputError: no distribution, bounds that are no finite numbers or in the wrong order, nothing to choose from.
    """
    for field, one in values.items():
        problem = _problem(one)
        if problem:
            raise InputError(f"{field}: {one!r:.80}: {problem}")


def _problem(one: Any) -> str | None:
    """What is wrong with a distribution."""
    if isinstance(one, Choice):
        fits = isinstance(one.values, Sequence) and not isinstance(one.values, str) and len(one.values) > 0
        return None if fits else "expected a tuple of one value or more"
    if not isinstance(one, Uniform | LogUniform):
        return "expected Uniform, LogUniform or Choice"
    for bound in (one.low, one.high):
        if isinstance(bound, bool) or not isinstance(bound, int | float) or not math.isfinite(bound):
            return f"found the bound {bound!r}, expected a finite number"
    if one.low > one.high:
        return "low is above high; exchange them"
    if isinstance(one, LogUniform) and one.low <= 0:
        return "expected low above 0, which has a logarithm; raise it, or use Uniform"
    return None


def _check(name: str, where: str, overrides: dict[Any, Any], base: Config) -> None:
    for field in overrides:
        if not isinstance(field, str):
            raise InputError(f'--sweep={name}: {where}: found {field!r:.80} as a field, expected "section.field"')
    try:
        base.override(overrides)
    except InputError as error:
        raise InputError(f"--sweep={name}: {where}: {error}") from error
