"""Examples: which item of a user's sequence to predict, and under which template, in a few bytes each."""

import dataclasses

import numpy as np
from jaxtyping import Int, UInt

from idgenrec_jax.data.dataset import Dataset


@dataclasses.dataclass(frozen=True)
class Examples:
    """Items to predict: each stands at a position of a user's sequence and is predicted from what is before it.

    `users` and `positions` are int32. `templates` has the smallest unsigned type for them.
    """

    users: Int[np.ndarray, " examples"]
    positions: Int[np.ndarray, " examples"]
    templates: UInt[np.ndarray, " examples"]

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.users)

    def __getitem__(self, example: int) -> tuple[int, int, int]:
        """Return the (user, position, template) of one example."""
        return int(self.users[example]), int(self.positions[example]), int(self.templates[example])


def training_positions(dataset: Dataset) -> tuple[Int[np.ndarray, " examples"], Int[np.ndarray, " examples"]]:
    """Return the user and the position (int32) of every example to train on, in the order of users.

    Every position of a training sequence is one but the first, which nothing is before.
    """
    users = range(len(dataset.users))
    counts = np.fromiter((max(0, len(dataset.training_sequence(user)) - 1) for user in users), np.int32, len(users))
    positions = ragged_ranges(np.ones(len(users), np.int32), counts)
    return np.repeat(np.arange(len(users), dtype=np.int32), counts), positions


def draw_training_examples(
    dataset: Dataset, num_templates: int, num_examples: int, rng: np.random.Generator
) -> Examples:
    """Return `num_examples` training examples (0: all) without replacement, each under a template of its own."""
    users, positions = training_positions(dataset)
    order = np.arange(len(users), dtype=np.int32)
    rng.shuffle(order)
    order = order[:num_examples] if num_examples else order
    templates = rng.integers(num_templates, size=len(order)).astype(np.min_scalar_type(num_templates - 1))
    return Examples(users[order], positions[order], templates)


def held_out_examples(dataset: Dataset, split: str, template: int) -> Examples:
    """Return every target of a held-out split, in the order of users, under one template."""
    users, positions = dataset.held_out_cases(split)
    return Examples(users, positions, np.full(len(users), template, np.min_scalar_type(template)))


def ragged_ranges(
    starts: Int[np.ndarray, " ranges"], counts: Int[np.ndarray, " ranges"]
) -> Int[np.ndarray, " numbers"]:
    """Return the numbers of all ranges, one range after the other: of each its `counts` numbers from `starts` on."""
    ends = np.cumsum(counts, dtype=starts.dtype)
    # Number n of all is n - (those of the ranges before) + the start of its own range.
    numbers = np.arange(ends[-1] if len(ends) else 0, dtype=starts.dtype)
    numbers += np.repeat(starts - (ends - counts.astype(starts.dtype)), counts)
    return numbers
