"""Batches of an ID phase: prompts with slots for soft IDs, and the texts of the distinct items that fill the slots.

Prompts and texts are packed as a recommender phase's are (see packing.py): several share a row, kept apart by segments.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Int

from idgenrec_jax.data.batches import PLANNED_EXAMPLES, PromptRenderer, draw, target_width
from idgenrec_jax.data.packing import (
    PLANNED_BATCHES,
    PackedShape,
    cheapest_shape,
    concatenate,
    enough_for,
    pack,
    plan_shape,
    round_up,
    stratified,
)

# A seed apart from those of the epochs.
_PLAN = 4
# Share of the planned batches for whose items there is room. Room for all would be empty in most of them.
_SHARE_WITH_ROOM = 0.9


class IdBatch(NamedTuple):
    """Prompts with slots for soft IDs, targets, and the texts of the distinct items that fill the slots.

    Segment s > 0 of a row's prompts and segment s of its targets are one example; segment 0 is padding. Each row of
    texts has a few places for items: `item_places` is the segment of the item's text, 0 where a place is free.
    `slot_item` is the place of a slot's item, counted through all rows of `item_places` (-1: an ordinary token),
    `slot_position` the position within that item's ID.
    """

    item_tokens: Int[Array | np.ndarray, "item_rows text"]
    item_segments: Int[Array | np.ndarray, "item_rows text"]
    item_places: Int[Array | np.ndarray, "item_rows places"]
    prompt_tokens: Int[Array | np.ndarray, "rows source"]
    prompt_segments: Int[Array | np.ndarray, "rows source"]
    slot_item: Int[Array | np.ndarray, "rows source"]
    slot_position: Int[Array | np.ndarray, "rows source"]
    target_tokens: Int[Array | np.ndarray, "rows target"]
    target_segments: Int[Array | np.ndarray, "rows target"]


class IdShape(NamedTuple):
    """The shape of every batch: the most examples and distinct items in one, and the rows of prompts and of texts."""

    examples: int
    items: int
    prompts: PackedShape
    texts: PackedShape


class _Measured(NamedTuple):
    """The items that each example's prompt has slots for, and the lengths in tokens of its prompt and target."""

    histories: list[list[int]]
    prompt_lengths: Int[np.ndarray, " examples"]
    target_lengths: Int[np.ndarray, " examples"]


def id_shape(
    renderer: PromptRenderer,
    text_tokens: Sequence[Sequence[int]],
    *,
    seed: int,
    batch_size: int,
    items_per_batch: int,
    id_length: int,
    row_multiple: int = 1,
) -> IdShape:
    """Return the shape of every batch of an ID phase, whatever the epoch.

    At most `batch_size` examples with at most `items_per_batch` distinct items between them, whose IDs have `id_length`
    tokens. Both numbers of rows are multiples of `row_multiple`.

    Raises ValueError when a history has more items than `items_per_batch`.
    """
    if items_per_batch < renderer.max_history:
        raise ValueError(f"items_per_batch={items_per_batch} does not hold a history of {renderer.max_history} items")
    drawn = _draw_examples(renderer, PLANNED_EXAMPLES, np.random.default_rng([seed, _PLAN]))
    measured = _measure(renderer, drawn, id_length)
    size = _examples_that_fit(measured, batch_size, items_per_batch)
    longest_history = min(renderer.max_history, max(position for _, position in renderer.dataset.training_examples()))
    longest_prompt = max(template.input_length(longest_history) for template in renderer.templates)
    longest_prompt += longest_history * id_length
    longest_prompt += max(map(len, renderer.user_ids), default=0) if renderer.user_ids is not None else 0
    prompts = plan_shape(
        measured.prompt_lengths,
        measured.target_lengths,
        batch_size=size,
        longest_prompt=min(longest_prompt, renderer.max_prompt_length),
        longest_target=target_width(renderer),
        row_multiple=row_multiple,
    )
    distinct = [items[:items_per_batch] for items in _planned_items(measured, size)]
    items = max(longest_history, enough_for(list(map(len, distinct)), _SHARE_WITH_ROOM))
    distinct = [of_batch[:items] for of_batch in distinct]
    text_lengths = np.asarray([len(tokens) for tokens in text_tokens])
    longest_text = int(text_lengths.max())
    texts = cheapest_shape(
        distinct,
        text_lengths,
        np.zeros_like(text_lengths),
        batch_size=items,
        longest_prompt=longest_text,
        longest_target=0,
        row_multiple=row_multiple,
        share=_SHARE_WITH_ROOM,
    )
    # Whatever its texts, one example must fit into an empty batch: a row takes this many of the longest.
    long_texts_per_row = min(texts.examples_per_row, texts.source // longest_text)
    rows = max(texts.rows, round_up(-(-longest_history // long_texts_per_row), row_multiple))
    return IdShape(size, items, prompts, texts._replace(rows=rows))


class IdBatches:
    """The batches of an ID epoch, each example in one of them, in random order.

    What does not fit its batch, for its prompts or for its items' texts, comes in further batches at the end.
    """

    def __init__(
        self,
        renderer: PromptRenderer,
        text_tokens: Sequence[Sequence[int]],
        *,
        seed: int,
        epoch: int,
        num_examples: int,
        id_length: int,
        shape: IdShape,
    ):
        """Draw the epoch's examples (`num_examples` 0: all) and plan its batches; `text_tokens` is each item's text.

        `shape` is that of `id_shape` for the same source, texts and `id_length`.
        """
        self._renderer, self._text_tokens, self._id_length, self._shape = renderer, text_tokens, id_length, shape
        self._text_lengths = np.asarray([len(tokens) for tokens in text_tokens])
        rng = np.random.default_rng([seed, 2, epoch])
        self._examples = _draw_examples(renderer, num_examples, rng)
        self._measured = _measure(renderer, self._examples, id_length)
        # Per batch, the examples of each row of prompts and the items of each row of texts.
        self._plan: list[tuple[list[list[int]], list[list[int]]]] = []
        remaining: list[int] = []
        for examples in stratified(self._measured.prompt_lengths, shape.examples, rng):
            remaining += self._plan_batch(examples.tolist())
        while remaining:
            remaining = self._plan_batch(remaining[: shape.examples]) + remaining[shape.examples :]

    def __len__(self) -> int:
        """Return the number of batches."""
        return len(self._plan)

    def examples(self, step: int) -> list[tuple[int, int, int]]:
        """Return the (user, position, template) of each example of batch `step`, row by row."""
        return [self._examples[example] for row in self._plan[step][0] for example in row]

    def batch(self, step: int) -> IdBatch:
        """Return batch `step`."""
        rows, item_rows = self._plan[step]
        prompts, texts = self._shape.prompts, self._shape.texts
        item_places = np.zeros((texts.rows, texts.examples_per_row), np.int32)
        place: dict[int, int] = {}
        for row, items in enumerate(item_rows):
            item_places[row, : len(items)] = np.arange(1, len(items) + 1)
            place |= {item: row * texts.examples_per_row + index for index, item in enumerate(items)}
        tokens, slot_items, slot_positions, targets = {}, {}, {}, {}
        for example in (example for row in rows for example in row):
            user, position, template = self._examples[example]
            sequence = self._renderer.dataset.training_sequence(user)
            tokens[example], slots, slot_positions[example], kept = self._renderer.slots(
                user, sequence[:position], template, self._id_length
            )
            # Shifted by one: what no token fills is an ordinary token too.
            places = [0, *(place[int(item)] + 1 for item in kept)]
            slot_items[example] = [places[slot + 1] for slot in slots]
            targets[example] = self._renderer.target(int(sequence[position]), template)
        shape = prompts.rows, prompts.source
        return IdBatch(
            *concatenate(item_rows, self._text_tokens, texts.rows, texts.source),
            item_places,
            *concatenate(rows, tokens, *shape),
            concatenate(rows, slot_items, *shape)[0] - 1,
            concatenate(rows, slot_positions, *shape)[0],
            *concatenate(rows, targets, prompts.rows, prompts.target),
        )

    def _plan_batch(self, examples: list[int]) -> list[int]:
        """Plan a batch of as many of the examples as fit, at least one, and return the others."""
        _, prompt_lengths, target_lengths = self._measured
        left: list[int] = []
        while True:
            rows, without_room = pack(np.asarray(examples), prompt_lengths, target_lengths, self._shape.prompts)
            items = _distinct_items(self._measured.histories, (example for row in rows for example in row))
            if len(items) <= self._shape.items:
                no_targets = np.zeros_like(self._text_lengths)
                item_rows, without_place = pack(items, self._text_lengths, no_targets, self._shape.texts)
                if not without_place:
                    self._plan.append((rows, item_rows))
                    return left + without_room
            left.append(examples[-1])
            examples = examples[:-1]


def _draw_examples(
    renderer: PromptRenderer, num_examples: int, rng: np.random.Generator
) -> list[tuple[int, int, int]]:
    """Return (user, position, template) of `num_examples` training examples (0: all), in random order."""
    examples = draw(renderer.dataset.training_examples(), num_examples, rng)
    templates = rng.integers(len(renderer.templates), size=len(examples)).tolist()
    return [(user, position, template) for (user, position), template in zip(examples, templates, strict=True)]


def _measure(renderer: PromptRenderer, examples: Sequence[tuple[int, int, int]], id_length: int) -> _Measured:
    histories, prompt_lengths, target_lengths = [], [], []
    for user, position, template in examples:
        sequence = renderer.dataset.training_sequence(user)
        kept, length = renderer.slots_length(user, position, template, id_length)
        histories.append(sequence[position - kept : position].tolist())
        prompt_lengths.append(length)
        target_lengths.append(len(renderer.target(int(sequence[position]), template)))
    return _Measured(histories, np.asarray(prompt_lengths, int), np.asarray(target_lengths, int))


def _distinct_items(histories: Sequence[Sequence[int]], examples: Iterable[int]) -> Int[np.ndarray, " items"]:
    """Return the distinct items of these examples' histories, in ascending order."""
    return np.asarray(sorted({item for example in examples for item in histories[example]}), int)


def _planned_items(measured: _Measured, batch_size: int) -> list[Int[np.ndarray, " _"]]:
    """Return the distinct items of some batches of so many examples, in random order."""
    batches = stratified(measured.prompt_lengths, batch_size, np.random.default_rng(0))[:PLANNED_BATCHES]
    rng = np.random.default_rng(1)
    return [rng.permutation(_distinct_items(measured.histories, batch.tolist())) for batch in batches]


def _examples_that_fit(measured: _Measured, batch_size: int, items_per_batch: int) -> int:
    """Return the most examples, up to `batch_size`, that have so few distinct items in nearly every batch."""
    fitting, too_many = 1, batch_size + 1
    while too_many - fitting > 1:
        middle = (fitting + too_many) // 2
        counts = list(map(len, _planned_items(measured, middle)))
        if enough_for(counts, _SHARE_WITH_ROOM) <= items_per_batch:
            fitting = middle
        else:
            too_many = middle
    return fitting
