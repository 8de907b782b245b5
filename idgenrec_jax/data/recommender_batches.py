"""Batches of a recommender phase: a pure function of (seed, epoch, step).

An epoch is packed (see packing.py), of prompts with a target each, or of windows with the targets of several prompts.
Batches are planned from lengths alone: a prompt is rendered when its batch is asked for.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from idgenrec_jax.data.choices import TargetChoices, place_choices
from idgenrec_jax.data.examples import Examples, draw_training_examples
from idgenrec_jax.data.packing import (
    WIDTH_MULTIPLE,
    CausalOrder,
    PackedBatches,
    SupervisedBatch,
    TokenLists,
    concatenate,
    plan_shape,
    round_up,
    stratified,
)
from idgenrec_jax.data.renderer import PromptRenderer
from idgenrec_jax.data.row_packing import PackedShape, pack
from idgenrec_jax.data.windows import Windows, draw_windows
from idgenrec_jax.errors import InputError

# A seed apart from those of the epochs.
_PLAN = 3
PLANNED_EXAMPLES = 20_000


class Target(NamedTuple):
    """One target of a batch as an example of its own: the items that it is predicted from, and its template."""

    user: int
    history: Int[np.ndarray, " history"]
    item: int
    template: int


class _Prompts:
    """Examples of one target each."""

    def __init__(self, renderer: PromptRenderer, examples: Examples):
        self._renderer, self._examples, self._templates = renderer, examples, examples.templates
        self._items = renderer.target_items(examples)
        self.prompts, self.targets = renderer.prompts(examples), renderer.targets(examples)

    def choice_counts(self, *, narrow: bool) -> Int[np.ndarray, " examples"]:
        """Return how many wide or narrow choices the target of each example has."""
        counts = self._renderer.choices.counts(narrow=narrow)
        return counts[self._renderer.ways(self._items, self._templates)]

    def items(self, example: int) -> tuple[list[int], int]:
        """Return the targets of one example, and its template."""
        return [int(self._items[example])], int(self._templates[example])

    def apart(self, example: int) -> list[Target]:
        """Return the example."""
        user, position, template = self._examples[example]
        sequence = self._renderer.dataset.sequences[user]
        return [Target(user, sequence[:position], int(sequence[position]), template)]


class _Windows:
    """Windows as examples, each of several targets."""

    def __init__(self, renderer: PromptRenderer, windows: Windows):
        self._renderer, self.windows = renderer, windows
        lengths = renderer.sums_over_targets(windows, renderer.way_lengths)
        self.prompts = TokenLists(
            renderer.window_lengths(windows), lambda window: renderer.window(windows, window).tokens
        )
        self.targets = TokenLists(lengths, self._target)

    def choice_counts(self, *, narrow: bool) -> Int[np.ndarray, " windows"]:
        """Return how many wide or narrow choices the targets of each window have together."""
        return self._renderer.sums_over_targets(self.windows, self._renderer.choices.counts(narrow=narrow))

    def items(self, window: int) -> tuple[list[int], int]:
        """Return the targets of one window, and its template."""
        return self._renderer.window_targets(self.windows, window).tolist(), int(self.windows.templates[window])

    def apart(self, window: int) -> list[Target]:
        """Return each target of one window with what stands before it there."""
        windows = self.windows
        user, start, end = (int(array[window]) for array in (windows.users, windows.starts, windows.ends))
        sequence, template = self._renderer.dataset.sequences[user], int(windows.templates[window])
        return [
            Target(user, sequence[start:position], int(sequence[position]), template)
            for position in range(int(windows.targets[window]), end)
        ]

    def first_number(self, window: int) -> int:
        """Return how many items stand before the first target of a window."""
        return int(self.windows.targets[window] - self.windows.starts[window])

    def _target(self, window: int) -> list[int]:
        items, template = self.items(window)
        return [token for item in items for token in self._renderer.decoded(item, template)]


class RecommenderBatches:
    """The batches of a recommender epoch, each target in one of them, in random order."""

    def __init__(
        self,
        renderer: PromptRenderer,
        source: _Prompts | _Windows,
        *,
        shape: PackedShape,
        batch_size: int,
        rng: np.random.Generator,
    ):
        """Plan the batches of at most `batch_size` examples of `source`."""
        self._renderer, self._source, self._shape = renderer, source, shape
        self._packed = PackedBatches(source.prompts, source.targets, shape=shape, batch_size=batch_size, rng=rng)
        if renderer.over_catalogue:
            self._room = choice_room(
                shape, [self._packed.most_in_a_row(source.choice_counts(narrow=narrow)) for narrow in (False, True)]
            )

    def __len__(self) -> int:
        """Return the number of batches."""
        return len(self._packed)

    @property
    def padding_shares(self) -> tuple[float, float]:
        """Shares of the positions of prompts and of targets, over all batches, that hold no token."""
        return self._packed.padding_shares

    def examples(self, step: int) -> list[tuple[Sequence[int], Sequence[int]]]:
        """Return the (prompt, target) pairs that batch `step` holds, row by row; of windows those of all targets."""
        return self._packed.examples(step)

    def targets(self, step: int) -> list[Target]:
        """Return the targets that batch `step` holds, row by row, each as an example of its own."""
        rows = self._packed.rows(step)
        return [target for row in rows for example in row for target in self._source.apart(example)]

    def batch(self, step: int) -> SupervisedBatch:
        """Return batch `step`."""
        rows, shape = self._packed.rows(step), self._shape
        order = None
        if isinstance(self._source, _Windows):
            source, lengths = self._source, self._renderer.way_lengths
            windows = {window: self._renderer.window(source.windows, window) for row in rows for window in row}
            target_numbers = {}
            for window in windows:
                items, template = source.items(window)
                ways = [self._renderer.way(item, template) for item in items]
                first = source.first_number(window)
                numbers = np.arange(first, first + len(items))
                target_numbers[window] = np.repeat(numbers, lengths[ways]).tolist()

            def of_windows(field: str) -> tuple[Int[np.ndarray, "rows source"], Int[np.ndarray, "rows source"]]:
                lists = {window: getattr(made, field) for window, made in windows.items()}
                return concatenate(rows, lists, shape.rows, shape.source)

            prompts = of_windows("tokens")
            numbers, branches, positions = (of_windows(field)[0] for field in ("numbers", "branches", "positions"))
            order = CausalOrder(
                numbers, branches, positions, concatenate(rows, target_numbers, shape.rows, shape.target)[0]
            )
        else:
            prompts = concatenate(rows, self._source.prompts, shape.rows, shape.source)
        targets = concatenate(rows, self._source.targets, shape.rows, shape.target)
        return SupervisedBatch(*prompts, *targets, choices=self._choices_of(rows), order=order)

    def _choices_of(self, rows: Sequence[Sequence[int]]) -> TargetChoices | None:
        renderer = self._renderer
        if not renderer.over_catalogue:
            return None
        ways, lengths = [], renderer.way_lengths
        for row in rows:
            targets = [(item, template) for items, template in map(self._source.items, row) for item in items]
            of_row = [renderer.way(*target) for target in targets]
            ways.append(list(zip(lengths[of_row].tolist(), of_row, strict=True)))
        return place_choices(renderer.choices, ways, self._shape.rows, self._room)


def with_choice_room(shape: PackedShape, most: Sequence[int]) -> PackedShape:
    """Return the shape with room for somewhat more wide and narrow choices a row than a plan has at most."""
    wide, narrow = (min(shape.target, round_up(count + 1, WIDTH_MULTIPLE)) if count else 0 for count in most)
    return shape._replace(choices=wide, narrow_choices=narrow)


def choice_room(shape: PackedShape, most: Sequence[int]) -> tuple[int, int]:
    """Return the room for wide and narrow choices a row: that of the shape, where an epoch's rows have no more.

    A choice is made at a position of its own, so that a row of targets has room for all elsewhere.
    """
    planned = shape.choices, shape.narrow_choices
    wide, narrow = (room if count <= room else shape.target for room, count in zip(planned, most, strict=True))
    return wide, narrow


def _draw(
    renderer: PromptRenderer, batch_size: int, num_targets: int, rng: np.random.Generator
) -> tuple[_Prompts | _Windows, int]:
    """Return examples that have `num_targets` targets (0: all), and how many of them have about `batch_size`."""
    num_templates = len(renderer.templates)
    if not renderer.is_causal:
        return _Prompts(renderer, draw_training_examples(renderer.dataset, num_templates, num_targets, rng)), batch_size
    windows = renderer.windows
    size = max(1, round(batch_size * len(windows) / max(1, int(windows.num_targets().sum()))))
    return _Windows(renderer, draw_windows(windows, num_templates, num_targets, rng)), size


def training_shape(renderer: PromptRenderer, *, seed: int, batch_size: int, row_multiple: int = 1) -> PackedShape:
    """Return the shape of every recommender batch with these IDs, whatever the epoch.

    A batch has `batch_size` targets; about so many where several share a window.

    Raises:
        InputError: no sequence has two items to train on.
    """
    source, size = _draw(renderer, batch_size, PLANNED_EXAMPLES, np.random.default_rng([seed, _PLAN]))
    if not len(source.prompts):
        raise InputError(
            f"the data {renderer.dataset.name!r} has nothing for training: expected sequences of at least four items "
            "(or of two, which are not evaluated)"
        )
    prompts, targets = source.prompts.lengths, source.targets.lengths
    longest = longest_example(renderer) if renderer.is_causal else (renderer.longest_prompt(), renderer.target_width())
    shape = plan_shape(
        prompts,
        targets,
        batch_size=size,
        longest_prompt=longest[0],
        longest_target=longest[1],
        row_multiple=row_multiple,
    )
    if not renderer.over_catalogue:
        return shape
    planned = pack(stratified(prompts, size, np.random.default_rng(0)), prompts, targets, shape)
    counts = (source.choice_counts(narrow=narrow) for narrow in (False, True))
    return with_choice_room(shape, [int(planned.tokens_per_row(of_kind).max()) for of_kind in counts])


def longest_example(renderer: PromptRenderer) -> tuple[int, int]:
    """Return the most tokens that the prompts and the targets of a window have, under any template."""
    windows = renderer.windows
    prompts = targets = 0
    for template in range(len(renderer.templates)):
        templates = np.full(len(windows), template, np.min_scalar_type(template))
        under = Windows(windows.users, windows.starts, windows.ends, windows.targets, templates)
        prompts = max(prompts, int(renderer.window_lengths(under).max(initial=0)))
        targets = max(targets, int(renderer.sums_over_targets(under, renderer.way_lengths).max(initial=0)))
    return prompts, targets


def recommender_epoch(
    renderer: PromptRenderer, *, seed: int, epoch: int, batch_size: int, num_examples: int, shape: PackedShape
) -> RecommenderBatches:
    """Return the training batches of one recommender epoch; `num_examples` targets, 0: all of them.

    `shape` is that of `training_shape` for the same renderer and batch size.

    Every position of every training sequence but the first is a target once. Templates are drawn anew each epoch, for
    every prompt or, in a causal epoch, for every window.
    """
    rng = np.random.default_rng([seed, 1, epoch])
    source, size = _draw(renderer, batch_size, num_examples, rng)
    return RecommenderBatches(renderer, source, shape=shape, batch_size=size, rng=rng)
