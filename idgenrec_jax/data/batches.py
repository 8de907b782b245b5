"""Prompts, and the numpy batches of recommender phases and of evaluation: a pure function of (seed, epoch, step).

A recommender epoch is packed (see packing.py). Held-out prompts have a row each and are sorted into a few buckets of
length, so that little padding is computed and few programs are compiled.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Int

from idgenrec_jax.data.dataset import Dataset
from idgenrec_jax.data.packing import (
    TARGET_MULTIPLE,
    WIDTH_MULTIPLE,
    PackedBatches,
    PackedShape,
    plan_shape,
    round_up,
)
from idgenrec_jax.data.prompts import PromptTokens
from idgenrec_jax.errors import InputError

# A seed apart from those of the epochs.
_PLAN = 3
PLANNED_EXAMPLES = 20_000


class HeldOutBatch(NamedTuple):
    """Prompts and the target tokens (ID + EOS) that should follow them, one example a row; other rows are padding."""

    prompt_tokens: Int[Array | np.ndarray, "batch source"]
    prompt_mask: Bool[Array | np.ndarray, "batch source"]
    target_tokens: Int[Array | np.ndarray, "batch target"]
    target_mask: Bool[Array | np.ndarray, "batch target"]


@dataclasses.dataclass(frozen=True)
class PromptRenderer:
    """Everything a prompt is written from.

    `item_ids` and `user_ids` hold one token sequence (without EOS) per item and user; `user_ids` is None where
    templates have no user.
    """

    dataset: Dataset
    templates: tuple[PromptTokens, ...]
    item_ids: tuple[tuple[int, ...], ...]
    user_ids: tuple[tuple[int, ...], ...] | None
    eos_id: int
    max_history: int
    max_prompt_length: int

    def prompt(self, user: int, history: Int[np.ndarray, " history"], template: int) -> list[int]:
        """Return the tokens of one prompt, EOS included: the last `max_history` items, fewer where they do not fit."""
        ids = [self.item_ids[item] for item in history[-self.max_history :]]
        return self.templates[template].render_input(ids, self._user_id(user), self.max_prompt_length)

    def slots(
        self, user: int, history: Int[np.ndarray, " history"], template: int, id_length: int
    ) -> tuple[list[int], list[int], list[int], Int[np.ndarray, " kept"]]:
        """Return tokens, slot items and slot positions of an ID-phase prompt, and the history items it kept."""
        history = history[-self.max_history :]
        tokens, slot_item, slot_position = self.templates[template].render_slots(
            len(history), id_length, self._user_id(user), self.max_prompt_length
        )
        kept = max(slot_item, default=-1) + 1
        return tokens, slot_item, slot_position, history[len(history) - kept :]

    def slots_length(self, user: int, history_length: int, template: int, id_length: int) -> tuple[int, int]:
        """Return how many history items `slots` keeps of so many, and the tokens of its prompt."""
        return self.templates[template].slots_length(
            min(history_length, self.max_history), id_length, self._user_id(user), self.max_prompt_length
        )

    def longest_prompt(self) -> int:
        """Return a number of tokens that no training prompt exceeds under any template."""
        tokens = np.asarray([len(tokens) for tokens in self.item_ids])
        longest = 0
        for user in range(len(self.dataset.users)):
            history = self.dataset.training_sequence(user)[:-1]
            sums = np.concatenate([[0], np.cumsum(tokens[history])])
            first = np.maximum(np.arange(len(sums)) - self.max_history, 0)
            longest = max(longest, int((sums - sums[first]).max()))
        fields = max(template.input_length(self.max_history) for template in self.templates)
        user = max(map(len, self.user_ids), default=0) if self.user_ids is not None else 0
        return min(self.max_prompt_length, longest + fields + user)

    def target(self, item: int, template: int) -> list[int]:
        """Return the tokens the recommender must write for `item`, EOS included."""
        rendered = self.templates[template]
        return [*rendered.target_prefix, *self.item_ids[item], *rendered.target_suffix, self.eos_id]

    def _user_id(self, user: int) -> tuple[int, ...] | None:
        return None if self.user_ids is None else self.user_ids[user]


def pad_rows(
    rows: Sequence[Sequence[int]], count: int, width: int, fill: int = 0
) -> tuple[Int[np.ndarray, "count width"], Bool[np.ndarray, "count width"]]:
    """Return `rows` as one int32 array of `count` rows padded with `fill`, and the mask of what is real."""
    tokens = np.full((count, width), fill, np.int32)
    mask = np.zeros((count, width), bool)
    for index, row in enumerate(rows):
        tokens[index, : len(row)] = row
        mask[index, : len(row)] = True
    return tokens, mask


def bucket_widths(lengths: Sequence[int], num_buckets: int) -> tuple[int, ...]:
    """Return at most `num_buckets` widths in tokens that pad `lengths` the least; the last holds the longest.

    Widths are multiples of 8. Exact, by dynamic programming over the widths in use.
    """
    used, counts = np.unique(-(-np.asarray(lengths) // WIDTH_MULTIPLE) * WIDTH_MULTIPLE, return_counts=True)
    rows = np.concatenate([[0], np.cumsum(counts)])
    # cost[k, j]: least number of positions for the j shortest widths in use, with at most k buckets.
    cost = np.full((num_buckets + 1, len(used) + 1), np.inf)
    cost[:, 0] = 0
    start = np.zeros((num_buckets + 1, len(used) + 1), int)
    for bucket in range(1, num_buckets + 1):
        for end in range(1, len(used) + 1):
            options = cost[bucket - 1, :end] + used[end - 1] * (rows[end] - rows[:end])
            start[bucket, end] = options.argmin()
            cost[bucket, end] = options.min()
    widths, end = [], len(used)
    for bucket in range(num_buckets, 0, -1):
        if end:
            widths.append(int(used[end - 1]))
            end = start[bucket, end]
    return tuple(reversed(widths))


class BucketedBatches:
    """Held-out examples by length of prompt, each batch padded to the width of its bucket.

    What does not fill a batch of its bucket moves on to the next wider one; only the last batch of all may be
    incomplete.
    """

    def __init__(
        self,
        prompts: Sequence[Sequence[int]],
        targets: Sequence[Sequence[int]],
        *,
        widths: Sequence[int],
        target_width: int,
        batch_size: int,
    ):
        """Plan the batches; nothing is padded before `batch` asks for it."""
        self._prompts, self._targets = prompts, targets
        self._target_width, self._batch_size = target_width, batch_size
        lengths = np.asarray([len(prompt) for prompt in prompts])
        buckets = np.searchsorted(np.asarray(widths), lengths)
        if len(lengths) and lengths.max() > widths[-1]:
            raise ValueError(f"a prompt of {lengths.max()} tokens does not fit the widest bucket, {widths[-1]}")
        order = np.argsort(lengths, kind="stable")
        self._plan: list[tuple[int, Int[np.ndarray, " rows"]]] = []
        carried = np.zeros(0, order.dtype)
        for bucket, width in enumerate(widths):
            rows = np.concatenate([carried, order[buckets[order] == bucket]])
            last = bucket == len(widths) - 1
            full = len(rows) if last else len(rows) - len(rows) % batch_size
            self._plan += [(width, rows[start : min(start + batch_size, full)]) for start in range(0, full, batch_size)]
            carried = rows[full:]

    def __len__(self) -> int:
        """Return the number of batches."""
        return len(self._plan)

    def rows(self, step: int) -> Int[np.ndarray, " rows"]:
        """Return which examples batch `step` holds, in row order; fewer than the batch size where it is not full."""
        return self._plan[step][1]

    def batch(self, step: int) -> HeldOutBatch:
        """Return batch `step`."""
        width, rows = self._plan[step]
        prompts = pad_rows([self._prompts[row] for row in rows], self._batch_size, width)
        return HeldOutBatch(
            *prompts, *pad_rows([self._targets[row] for row in rows], self._batch_size, self._target_width)
        )


def target_width(renderer: PromptRenderer) -> int:
    """Return the width in tokens that fits every item's target under every template."""
    templates, items = range(len(renderer.templates)), range(len(renderer.item_ids))
    longest = max(len(renderer.target(item, template)) for item in items for template in templates)
    return round_up(longest, TARGET_MULTIPLE)


def training_shape(renderer: PromptRenderer, *, seed: int, batch_size: int, row_multiple: int = 1) -> PackedShape:
    """Return the shape of every recommender batch with these IDs, whatever the epoch.

    Raises:
        InputError: no sequence has two items to train on.
    """
    if not renderer.dataset.training_examples():
        raise InputError(
            f"the data {renderer.dataset.name!r} has nothing for training: expected sequences of at least four items "
            "(or of two, which are not evaluated)"
        )
    prompts, targets = _render(renderer, PLANNED_EXAMPLES, np.random.default_rng([seed, _PLAN]))
    return plan_shape(
        [len(prompt) for prompt in prompts],
        [len(target) for target in targets],
        batch_size=batch_size,
        longest_prompt=renderer.longest_prompt(),
        longest_target=target_width(renderer),
        row_multiple=row_multiple,
    )


def recommender_epoch(
    renderer: PromptRenderer, *, seed: int, epoch: int, batch_size: int, num_examples: int, shape: PackedShape
) -> PackedBatches:
    """Return the training batches of one recommender epoch; `num_examples` 0 means all of them.

    `shape` is that of `training_shape` for the same source and batch size.

    Every position of every training sequence but the first is a target once; its template is drawn anew each epoch.
    """
    rng = np.random.default_rng([seed, 1, epoch])
    prompts, targets = _render(renderer, num_examples, rng)
    return PackedBatches(prompts, targets, shape=shape, batch_size=batch_size, rng=rng)


def _render(
    renderer: PromptRenderer, num_examples: int, rng: np.random.Generator
) -> tuple[list[list[int]], list[list[int]]]:
    """Return prompts and targets of `num_examples` training examples (0: all), each under a template of its own."""
    examples = draw(renderer.dataset.training_examples(), num_examples, rng)
    templates = rng.integers(len(renderer.templates), size=len(examples)).tolist()
    prompts, targets = [], []
    for (user, position), template in zip(examples, templates, strict=True):
        sequence = renderer.dataset.training_sequence(user)
        prompts.append(renderer.prompt(user, sequence[:position], template))
        targets.append(renderer.target(int(sequence[position]), template))
    return prompts, targets


def held_out_batches(
    renderer: PromptRenderer, split: str, *, template: int, batch_size: int, num_buckets: int
) -> tuple[BucketedBatches, Int[np.ndarray, " users"], Int[np.ndarray, " users"]]:
    """Return the prompts of a held-out split by length, the user of each example, and its target item."""
    users = np.asarray(renderer.dataset.evaluation_users)
    if not len(users):
        raise InputError(
            f"the data {renderer.dataset.name!r} has no user with 3 items or more, nobody to evaluate; add users"
        )
    prompts, targets = [], []
    for user in users:
        history, target = renderer.dataset.held_out(int(user), split)
        prompts.append(renderer.prompt(int(user), history, template))
        targets.append(target)
    batches = BucketedBatches(
        prompts,
        [renderer.target(target, template) for target in targets],
        widths=bucket_widths([len(prompt) for prompt in prompts], num_buckets),
        target_width=target_width(renderer),
        batch_size=batch_size,
    )
    return batches, users, np.asarray(targets, np.int32)


def draw(
    examples: Sequence[tuple[int, int]], count: int, rng: np.random.Generator
) -> list[tuple[int, int]]:
    """Return `count` of the examples without replacement (0: all), in random order."""
    order = rng.permutation(len(examples))
    return [examples[index] for index in (order[:count] if count else order)]
