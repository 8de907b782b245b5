"""What prompts and targets are written from: data, IDs and templates."""

import dataclasses
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Int, UInt

from idgenrec_jax.data.choices import Choices, find_choices
from idgenrec_jax.data.dataset import Dataset
from idgenrec_jax.data.examples import Examples, ragged_ranges, training_positions
from idgenrec_jax.data.packing import TARGET_MULTIPLE, TokenLists, lengths_of, round_up
from idgenrec_jax.data.prompts import PromptTokens, PromptWindow
from idgenrec_jax.data.windows import Windows, training_windows

# Examples that are measured at once, which bounds the memory that it takes.
_MEASURED_TOGETHER = 2**18


TargetTexts = tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]
"""The tokens before and behind an ID, of one target text or more."""


@dataclasses.dataclass(frozen=True)
class PromptRenderer:
    """Everything a prompt is written from.

    `item_ids` and `user_ids` hold one token sequence (without EOS) per item and user; `user_ids` is None where
    templates have no user. With `user_ids_by_prefix` they hold one per interaction instead, in the order of `items`:
    the user's ID by what was before it. `over_catalogue`: the recommender's probabilities are normalised over what
    continues an ID, so that targets end at their last choice. `is_causal`: an item of a history does not see those
    after it. `found_choices` keeps `choices` by the target texts that they are of; renderers of the same `item_ids` may
    share it.
    """

    dataset: Dataset
    templates: tuple[PromptTokens, ...]
    item_ids: tuple[tuple[int, ...], ...]
    user_ids: tuple[tuple[int, ...], ...] | None
    eos_id: int
    max_history: int
    max_prompt_length: int
    over_catalogue: bool = False
    is_causal: bool = False
    user_ids_by_prefix: bool = False
    found_choices: dict[TargetTexts, Choices] = dataclasses.field(default_factory=dict, repr=False, compare=False)

    def prompt(self, user: int, history: Int[np.ndarray, " history"], template: int) -> list[int]:
        """Return the tokens of one prompt, EOS included: the last `max_history` items, fewer where they do not fit."""
        return self.numbered_prompt(user, history, template)[0]

    def numbered_prompt(
        self, user: int, history: Int[np.ndarray, " history"], template: int
    ) -> tuple[list[int], list[int]]:
        """Return `prompt`, and of each token the number of the history item that it belongs to.

        `history` is the user's sequence up to the target.
        """
        ids = [self.item_ids[item] for item in history[-self.max_history :].tolist()]
        return self.templates[template].render_numbered(ids, self.user_id(user, len(history)), self.max_prompt_length)

    def window(self, windows: Windows, window: int) -> PromptWindow:
        """Return the prompts of all targets of one window."""
        user, start, end = int(windows.users[window]), int(windows.starts[window]), int(windows.ends[window])
        ids = [self.item_ids[item] for item in self.dataset.sequences[user][start : end - 1].tolist()]
        first = int(windows.targets[window])
        user_ids = [self.user_id(user, position) for position in range(first, end)]
        return self.templates[windows.templates[window]].render_window(ids, user_ids, first - start)

    def slots(
        self, user: int, history: Int[np.ndarray, " history"], template: int, id_length: int
    ) -> tuple[list[int], list[int], list[int], list[int], Int[np.ndarray, " kept"]]:
        """Return an ID-phase prompt as `PromptTokens.render_slots` does, and the history items it kept."""
        user_id = self.user_id(user, len(history))
        history = history[-self.max_history :]
        tokens, slot_item, slot_position, numbers = self.templates[template].render_slots(
            len(history), id_length, user_id, self.max_prompt_length
        )
        kept = max(slot_item, default=-1) + 1
        return tokens, slot_item, slot_position, numbers, history[len(history) - kept :]

    def target_width(self) -> int:
        """Return the width in tokens that fits what is decoded of every item's target under every template."""
        return round_up(int(self.way_lengths.max()), TARGET_MULTIPLE)

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
        """Return what is decoded of the examples' targets, each made when it is asked for."""
        items = self.target_items(examples)
        lengths = self.way_lengths[self.ways(items, examples.templates)]
        return TokenLists(lengths, lambda example: self.decoded(int(items[example]), int(examples.templates[example])))

    def decoded(self, item: int, template: int) -> list[int]:
        """Return the tokens of an item's target that are decoded: over the catalogue those up to its last choice."""
        return self.target(item, template)[: self._way_lengths_list[self.way(item, template)]]

    def way(self, item: int, template: int) -> int:
        """Return the way to an item (see `Choices`) under a template."""
        return self._kinds[template] * len(self.item_ids) + item

    def ways(
        self, items: Int[np.ndarray, " targets"], templates: UInt[np.ndarray, " targets"]
    ) -> Int[np.ndarray, " targets"]:
        """Return the ways to items under templates."""
        return np.asarray(self._kinds, np.int64)[templates] * len(self.item_ids) + items

    @cached_property
    def choices(self) -> Choices:
        """The choices of all targets under all templates."""
        texts = self._target_texts
        if texts not in self.found_choices:
            self.found_choices[texts] = find_choices(
                [
                    [self.target(item, self._kinds.index(kind))[:-1] for item in range(len(self.item_ids))]
                    for kind in range(len(texts))
                ],
                eos_token_id=self.eos_id,
            )
        return self.found_choices[texts]

    @cached_property
    def most_choices(self) -> tuple[int, int]:
        """The most wide and the most narrow choices of any target."""
        wide, narrow = (int(self.choices.counts(narrow=narrow).max(initial=0)) for narrow in (False, True))
        return wide, narrow

    @cached_property
    def way_lengths(self) -> Int[np.ndarray, " ways"]:
        """How many tokens are decoded on each way (int32)."""
        if self.over_catalogue:
            return self.choices.lengths()
        first = [self._kinds.index(kind) for kind in range(max(self._kinds) + 1)]
        return np.concatenate([self._item_lengths + self._target_fields[template] for template in first])

    @cached_property
    def _way_lengths_list(self) -> list[int]:
        """`way_lengths` as Python numbers, which are read one by one."""
        return self.way_lengths.tolist()

    @cached_property
    def _kinds(self) -> tuple[int, ...]:
        """The target text of each template: templates that put the same tokens around an ID share one."""
        texts = [(template.target_prefix, template.target_suffix) for template in self.templates]
        return tuple(map(self._target_texts.index, texts))

    @cached_property
    def _target_texts(self) -> TargetTexts:
        """The distinct target texts of the templates."""
        return tuple(
            dict.fromkeys((template.target_prefix, template.target_suffix) for template in self.templates)
        )

    @cached_property
    def windows(self) -> Windows:
        """Return the windows of all training sequences; their prompts fit under every template.

        Raises:
            InputError: a template or an ID alone is longer than a prompt may be, or user IDs are missing.
        """
        longest_user = None if self.user_ids is None else max(map(len, self.user_ids), default=0)
        return training_windows(
            self.dataset,
            self._tokens_before,
            self._starts,
            max_history=self.max_history,
            room=min(template.room(longest_user, self.max_prompt_length) for template in self.templates),
            separator=max(len(template.separator) for template in self.templates),
        )

    def window_lengths(self, windows: Windows) -> Int[np.ndarray, " windows"]:
        """Return the tokens of each window's prompts."""
        firsts = self._starts[windows.users] + windows.starts
        lasts = self._starts[windows.users] + windows.ends - 1
        id_tokens = self._tokens_before[lasts] - self._tokens_before[firsts]
        first_users, all_users = self._user_tokens(windows)
        lengths = np.zeros(len(windows), np.int32)
        for number, template in enumerate(self.templates):
            (chosen,) = np.nonzero(windows.templates == number)
            lengths[chosen] = template.window_lengths(
                id_tokens[chosen],
                (lasts - firsts)[chosen],
                windows.num_targets()[chosen],
                (first_users[chosen], all_users[chosen]),
            )
        return lengths

    def _user_tokens(
        self, windows: Windows
    ) -> tuple[Int[np.ndarray, " windows"], Int[np.ndarray, " windows"]]:
        """The tokens of the user ID of each window's first target, and of the user IDs of all its targets."""
        if self.user_ids is None:
            return np.zeros(len(windows), np.int64), np.zeros(len(windows), np.int64)
        firsts = self._user_places(windows.users, windows.targets)
        if not self.user_ids_by_prefix:
            tokens = self._user_lengths[firsts]
            return tokens, tokens * windows.num_targets()
        before = np.concatenate([np.zeros(1, np.int64), np.cumsum(self._user_lengths, dtype=np.int64)])
        return self._user_lengths[firsts], before[firsts + windows.num_targets()] - before[firsts]

    def window_targets(self, windows: Windows, window: int) -> Int[np.ndarray, " targets"]:
        """Return the items that are the targets of one window."""
        return self.dataset.sequences[windows.users[window]][windows.targets[window] : windows.ends[window]]

    def sums_over_targets(
        self, windows: Windows, values: Int[np.ndarray, " ways"]
    ) -> Int[np.ndarray, " windows"]:
        """Return the sum of a value of ways over the targets of each window (int32)."""
        counts = windows.num_targets()
        firsts = self._starts[windows.users] + windows.targets
        items = self.items[ragged_ranges(firsts, counts)]
        of_targets = values[self.ways(items, np.repeat(windows.templates, counts))]
        ends = np.cumsum(counts)
        before = np.concatenate([np.zeros(1, np.int64), np.cumsum(of_targets)])
        return (before[ends] - before[ends - counts]).astype(np.int32)

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
        kept, lengths = np.zeros((2, len(examples)), np.int32)
        for start in range(0, len(examples), _MEASURED_TOGETHER):
            some = slice(start, start + _MEASURED_TOGETHER)
            users, positions, templates = examples.users[some], examples.positions[some], examples.templates[some]
            ends = self._starts[users] + positions
            firsts = np.maximum(ends - self.max_history, self._starts[users])
            for number, template in enumerate(self.templates):
                (chosen,) = np.nonzero(templates == number)
                user_lengths = None
                if self.user_ids is not None:
                    user_lengths = self._user_lengths[self._user_places(users[chosen], positions[chosen])]
                kept[start + chosen], lengths[start + chosen] = template.input_lengths(
                    tokens_before, firsts[chosen], ends[chosen], user_lengths, self.max_prompt_length
                )
        return kept, lengths

    def target(self, item: int, template: int) -> list[int]:
        """Return the tokens that the recommender writes for `item`, EOS included."""
        rendered = self.templates[template]
        return [*rendered.target_prefix, *self.item_ids[item], *rendered.target_suffix, self.eos_id]

    def user_id(self, user: int, position: int) -> tuple[int, ...] | None:
        """Return the user's ID in the prompt of the target at a position of the sequence; None without user IDs."""
        return None if self.user_ids is None else self.user_ids[int(self._user_places(user, position))]

    def _user_places(self, users: Any, positions: Any) -> Any:
        """Where in `user_ids` the IDs of users stand, in prompts of targets at these positions."""
        return self._starts[users] + positions if self.user_ids_by_prefix else users

    @cached_property
    def _user_lengths(self) -> Int[np.ndarray, " user_ids"]:
        """The tokens of each of the user IDs."""
        return lengths_of(self.user_ids or ())
