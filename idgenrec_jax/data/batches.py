"""Prompts, and the numpy batches of recommender phases and of evaluation: a pure function of (seed, epoch, step).

A recommender epoch is packed (see packing.py). Held-out prompts have a row each and are sorted into a few buckets of
length, so that little padding is computed and few programs are compiled. Batches are planned from lengths alone: a
prompt is rendered when its batch is asked for.
"""

import dataclasses
from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Int

from idgenrec_jax.data.dataset import Dataset
from idgenrec_jax.data.examples import Examples, draw_training_examples, held_out_examples, training_positions
from idgenrec_jax.data.packing import (
    TARGET_MULTIPLE,
    WIDTH_MULTIPLE,
    PackedBatches,
    TokenLists,
    lengths_of,
    plan_shape,
    round_up,
)
from idgenrec_jax.data.prompts import PromptTokens
from idgenrec_jax.data.row_packing import PackedShape
from idgenrec_jax.errors import InputError

# A seed apart from those of the epochs.
_PLAN = 3
PLANNED_EXAMPLES = 20_000
# Examples that are measured at once, which bounds the memory that it takes.
_MEASURED_TOGETHER = 2**18


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
        ids = [self.item_ids[item] for item in history[-self.max_history :].tolist()]
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

    def target_width(self) -> int:
        """Return the width in tokens that fits every item's target under every template."""
        return round_up(int(self._item_lengths.max() + self._target_fields.max()), TARGET_MULTIPLE)

    def longest_prompt(self) -> int:
        """Return a number of tokens that no training prompt exceeds under any template."""
        users, positions = training_positions(self.dataset)
        ends = self._starts[users] + positions
        firsts = np.maximum(ends - self.max_history, self._starts[users])
        longest = int((self._tokens_before[ends] - self._tokens_before[firsts]).max(initial=0))
        return min(self.max_prompt_length, longest + self.longest_fields(self.max_history))

    def longest_fields(self, number_of_history_items: int) -> int:
        """Return the most tokens of a prompt beside those of its items' IDs."""
        fields = max(template.input_length(number_of_history_items) for template in self.templates)
        return fields + (max(map(len, self.user_ids), default=0) if self.user_ids is not None else 0)

    def prompts(self, examples: Examples) -> TokenLists:
        """Return the prompts of the examples, each rendered when it is asked for."""
        _, lengths = self._measure(examples, self._tokens_before)

        def make(example: int) -> list[int]:
            user, position, template = examples[example]
            return self.prompt(user, self.dataset.sequences[user][:position], template)

        return TokenLists(lengths, make)

    def targets(self, examples: Examples) -> TokenLists:
        """Return the targets of the examples, each made when it is asked for."""
        items = self.target_items(examples)
        lengths = self._item_lengths[items] + self._target_fields[examples.templates]
        return TokenLists(lengths, lambda example: self.target(int(items[example]), int(examples.templates[example])))

    def target_items(self, examples: Examples) -> Int[np.ndarray, " examples"]:
        """Return the item (int32) that each example predicts."""
        return self.items[self.history_ends(examples)]

    def slots_lengths(
        self, examples: Examples, id_length: int
    ) -> tuple[Int[np.ndarray, " examples"], Int[np.ndarray, " examples"]]:
        """Return how many history items `slots` keeps of each example, and the tokens of its prompt (int32)."""
        return self._measure(examples, id_length * np.arange(len(self.items) + 1))

    def history_ends(self, examples: Examples) -> Int[np.ndarray, " examples"]:
        """Return where in `items` the history of each example ends; the item that it predicts stands there."""
        return self._starts[examples.users] + examples.positions

    @cached_property
    def items(self) -> Int[np.ndarray, " interactions"]:
        """The sequences of all users, one after the other (int32)."""
        return np.concatenate([np.zeros(0, np.int32), *self.dataset.sequences])

    @cached_property
    def _starts(self) -> Int[np.ndarray, " users"]:
        """Where in `items` each user's sequence starts."""
        lengths = lengths_of(self.dataset.sequences)
        return np.cumsum(lengths, dtype=np.int64) - lengths

    @cached_property
    def _item_lengths(self) -> Int[np.ndarray, " catalogue"]:
        """The tokens of each item's ID (int32)."""
        return lengths_of(self.item_ids)

    @cached_property
    def _tokens_before(self) -> Int[np.ndarray, " prefixes"]:
        """How many tokens the IDs of the first 0, 1, 2, ... of `items` have together."""
        return np.concatenate([np.zeros(1, np.int64), np.cumsum(self._item_lengths[self.items], dtype=np.int64)])

    @cached_property
    def _target_fields(self) -> Int[np.ndarray, " templates"]:
        """The tokens that a target has beside the item's ID, EOS included, under each template (int32)."""
        fields = [len(template.target_prefix) + len(template.target_suffix) + 1 for template in self.templates]
        return np.asarray(fields, np.int32)

    def _measure(
        self, examples: Examples, tokens_before: Int[np.ndarray, " prefixes"]
    ) -> tuple[Int[np.ndarray, " examples"], Int[np.ndarray, " examples"]]:
        """Return how many history items each prompt keeps, and its tokens (int32)."""
        user_lengths = None if self.user_ids is None else lengths_of(self.user_ids)
        kept, lengths = np.zeros((2, len(examples)), np.int32)
        for start in range(0, len(examples), _MEASURED_TOGETHER):
            some = slice(start, start + _MEASURED_TOGETHER)
            users, positions, templates = examples.users[some], examples.positions[some], examples.templates[some]
            ends = self._starts[users] + positions
            firsts = np.maximum(ends - self.max_history, self._starts[users])
            for number, template in enumerate(self.templates):
                (chosen,) = np.nonzero(templates == number)
                users_lengths = None if user_lengths is None else user_lengths[users[chosen]]
                kept[start + chosen], lengths[start + chosen] = template.input_lengths(
                    tokens_before, firsts[chosen], ends[chosen], users_lengths, self.max_prompt_length
                )
        return kept, lengths

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


def bucket_widths(lengths: Sequence[int] | Int[np.ndarray, " prompts"], num_buckets: int) -> tuple[int, ...]:
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
        prompts: Sequence[Sequence[int]] | TokenLists,
        targets: Sequence[Sequence[int]] | TokenLists,
        *,
        widths: Sequence[int],
        target_width: int,
        batch_size: int,
    ):
        """Plan the batches from lengths; no prompt is made before `batch` asks for it."""
        self._prompts, self._targets = prompts, targets
        self._target_width, self._batch_size = target_width, batch_size
        lengths = lengths_of(prompts)
        buckets = np.searchsorted(np.asarray(widths), lengths)
        if len(lengths) and lengths.max() > widths[-1]:
            raise ValueError(f"a prompt of {lengths.max()} tokens does not fit the widest bucket, {widths[-1]}")
        order = np.argsort(lengths, kind="stable").astype(np.int32)
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
        prompts, targets = ([tokens[row] for row in rows.tolist()] for tokens in (self._prompts, self._targets))
        return HeldOutBatch(
            *pad_rows(prompts, self._batch_size, width), *pad_rows(targets, self._batch_size, self._target_width)
        )


def training_shape(renderer: PromptRenderer, *, seed: int, batch_size: int, row_multiple: int = 1) -> PackedShape:
    """Return the shape of every recommender batch with these IDs, whatever the epoch.

    Raises:
        InputError: no sequence has two items to train on.
    """
    drawn = draw_training_examples(
        renderer.dataset, len(renderer.templates), PLANNED_EXAMPLES, np.random.default_rng([seed, _PLAN])
    )
    if not len(drawn):
        raise InputError(
            f"the data {renderer.dataset.name!r} has nothing for training: expected sequences of at least four items "
            "(or of two, which are not evaluated)"
        )
    return plan_shape(
        renderer.prompts(drawn).lengths,
        renderer.targets(drawn).lengths,
        batch_size=batch_size,
        longest_prompt=renderer.longest_prompt(),
        longest_target=renderer.target_width(),
        row_multiple=row_multiple,
    )


def recommender_epoch(
    renderer: PromptRenderer, *, seed: int, epoch: int, batch_size: int, num_examples: int, shape: PackedShape
) -> PackedBatches:
    """Return the training batches of one recommender epoch; `num_examples` 0 means all of them.

    `shape` is that of `training_shape` for the same renderer and batch size.

    Every position of every training sequence but the first is a target once; its template is drawn anew each epoch.
    """
    rng = np.random.default_rng([seed, 1, epoch])
    examples = draw_training_examples(renderer.dataset, len(renderer.templates), num_examples, rng)
    prompts, targets = renderer.prompts(examples), renderer.targets(examples)
    return PackedBatches(prompts, targets, shape=shape, batch_size=batch_size, rng=rng)


def held_out_batches(
    renderer: PromptRenderer, split: str, *, template: int, batch_size: int, num_buckets: int
) -> tuple[BucketedBatches, Int[np.ndarray, " users"], Int[np.ndarray, " users"]]:
    """Return the prompts of a held-out split by length, the user of each example, and its target item (int32)."""
    examples = held_out_examples(renderer.dataset, split, template)
    if not len(examples):
        raise InputError(
            f"the data {renderer.dataset.name!r} has no user with 3 items or more, nobody to evaluate; add users"
        )
    prompts = renderer.prompts(examples)
    batches = BucketedBatches(
        prompts,
        renderer.targets(examples),
        widths=bucket_widths(prompts.lengths, num_buckets),
        target_width=renderer.target_width(),
        batch_size=batch_size,
    )
    return batches, examples.users, renderer.target_items(examples)
