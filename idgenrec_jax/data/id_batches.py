"""Batches of an ID phase: prompts with slots for soft IDs, and the texts of the distinct items that fill the slots.

Prompts and texts are packed as a recommender phase's are (see packing.py): several share a row, kept apart by segments.
"""

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Int

from idgenrec_jax.data.choices import TargetChoices, place_choices
from idgenrec_jax.data.examples import Examples, draw_training_examples, ragged_ranges, training_positions
from idgenrec_jax.data.followers import Followers
from idgenrec_jax.data.packing import (
    PLANNED_BATCHES,
    cheapest_shape,
    concatenate,
    enough_for,
    lengths_of,
    plan_shape,
    round_up,
    stratified,
)
from idgenrec_jax.data.recommender_batches import PLANNED_EXAMPLES, choice_room, with_choice_room
from idgenrec_jax.data.renderer import PromptRenderer
from idgenrec_jax.data.row_packing import Packed, PackedShape, as_table, joined, pack

# Seeds apart from those of the epochs.
_PLAN, _NEIGHBOURS = 4, 5
# Share of the planned batches for whose items there is room. Room for all would be empty in most of them.
_SHARE_WITH_ROOM = 0.9
# Batches that are planned at once, which bounds the memory that it takes.
_PLANNED_TOGETHER = 2**11


class IdBatch(NamedTuple):
    """Prompts with slots for soft IDs, targets, and the texts of the distinct items that fill the slots.

    Segment s > 0 of a row's prompts and segment s of its targets are one example; segment 0 is padding. Each row of
    texts has a few places for items: `item_places` is the segment of the item's text, 0 where a place is free.
    `slot_item` is the place of a slot's item, counted through all rows of `item_places` (-1: an ordinary token),
    `slot_position` the position within that item's ID. With `choices`, targets end at their last choice. Where the
    history is causal, `prompt_items` is the number of the history item that a token belongs to. `neighbour_tokens`,
    where asked for, is the first token of the ID of an item that follows the one in a place; -1 where there is none.
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
    choices: TargetChoices | None = None
    prompt_items: Int[Array | np.ndarray, "rows source"] | None = None
    neighbour_tokens: Int[Array | np.ndarray, "item_rows places"] | None = None


class IdShape(NamedTuple):
    """The shape of every batch: the most examples and distinct items in one, and the rows of prompts and of texts."""

    examples: int
    items: int
    prompts: PackedShape
    texts: PackedShape


class _Measured:
    """The items that each example's prompt has slots for, and the lengths in tokens of its prompt and target."""

    def __init__(self, renderer: PromptRenderer, examples: Examples, id_length: int):
        """Measure the prompts of the examples without rendering them."""
        self.kept, self.prompt_lengths = renderer.slots_lengths(examples, id_length)
        self.target_lengths = renderer.targets(examples).lengths
        self._items, self._num_items = renderer.items, len(renderer.dataset.items)
        self._firsts = renderer.history_ends(examples) - self.kept

    def distinct_items(
        self, batches: Int[np.ndarray, "batches size"], chosen: Bool[np.ndarray, "batches size"]
    ) -> list[Int[np.ndarray, " _"]]:
        """Return the distinct items of each batch's chosen examples, in ascending order."""
        batch, _ = np.nonzero(chosen)
        examples = batches[chosen]
        kept = self.kept[examples]
        items = self._items[ragged_ranges(self._firsts[examples], kept)]
        # One number for each (batch, item), so that one sort serves all batches; np.unique takes four times as long.
        pairs = np.sort(np.repeat(batch, kept) * self._num_items + items)
        pairs = pairs[np.diff(pairs, prepend=-1) > 0]
        ends = np.searchsorted(pairs, np.arange(1, len(batches)) * self._num_items)
        return np.split(pairs % self._num_items, ends) if len(batches) else []


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
    drawn = draw_training_examples(
        renderer.dataset, len(renderer.templates), PLANNED_EXAMPLES, np.random.default_rng([seed, _PLAN])
    )
    measured = _Measured(renderer, drawn, id_length)
    size = _examples_that_fit(measured, batch_size, items_per_batch)
    longest_history = min(renderer.max_history, int(training_positions(renderer.dataset)[1].max()))
    longest_prompt = longest_history * id_length + renderer.longest_fields(longest_history)
    prompts = plan_shape(
        measured.prompt_lengths,
        measured.target_lengths,
        batch_size=size,
        longest_prompt=min(longest_prompt, renderer.max_prompt_length),
        longest_target=renderer.target_width(),
        row_multiple=row_multiple,
    )
    if renderer.over_catalogue:
        ways = renderer.ways(renderer.target_items(drawn), drawn.templates)
        counts = [renderer.choices.counts(narrow=narrow)[ways] for narrow in (False, True)]
        planned = pack(
            stratified(measured.prompt_lengths, size, np.random.default_rng(0)),
            measured.prompt_lengths,
            measured.target_lengths,
            prompts,
        )
        prompts = with_choice_room(prompts, [int(planned.tokens_per_row(of_kind).max()) for of_kind in counts])
    distinct = _planned_items(measured, size)
    items = enough_for([min(len(of_batch), items_per_batch) for of_batch in distinct], _SHARE_WITH_ROOM)
    items = max(longest_history, items)
    text_lengths = lengths_of(text_tokens)
    longest_text = int(text_lengths.max())
    texts = cheapest_shape(
        as_table([of_batch[:items] for of_batch in distinct], items),
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
        followers: Followers | None = None,
    ):
        """Draw the epoch's examples (`num_examples` 0: all) and plan its batches; `text_tokens` is each item's text.

        `shape` is that of `id_shape` for the same renderer, texts and `id_length`. With `followers`, batches have
        `neighbour_tokens`, drawn anew each epoch.
        """
        self._followers, self._seed, self._epoch = followers, seed, epoch
        self._renderer, self._text_tokens, self._id_length, self._shape = renderer, text_tokens, id_length, shape
        self._text_lengths = lengths_of(text_tokens)
        rng = np.random.default_rng([seed, 2, epoch])
        self._examples = draw_training_examples(renderer.dataset, len(renderer.templates), num_examples, rng)
        measured = _Measured(renderer, self._examples, id_length)
        batches = stratified(measured.prompt_lengths, shape.examples, rng)
        plans, waiting = [], deque[int]()
        for start in range(0, len(batches), _PLANNED_TOGETHER):
            *plan, left = self._pack(batches[start : start + _PLANNED_TOGETHER], measured)
            plans.append(plan)
            waiting += left
        while waiting:
            batch = [waiting.popleft() for _ in range(min(shape.examples, len(waiting)))]
            *plan, left = self._pack(as_table([batch], shape.examples), measured)
            plans.append(plan)
            waiting.extendleft(left[::-1])
        # The examples of each row of prompts, and the items of each row of texts.
        self._prompts, self._texts = map(joined, zip(*plans, strict=True))
        if renderer.over_catalogue:
            ways = renderer.ways(renderer.target_items(self._examples), self._examples.templates)
            counts = [renderer.choices.counts(narrow=narrow)[ways] for narrow in (False, True)]
            most = [int(self._prompts.tokens_per_row(of_kind).max(initial=0)) for of_kind in counts]
            self._room = choice_room(shape.prompts, most)

    def __len__(self) -> int:
        """Return the number of batches."""
        return len(self._prompts.examples)

    @property
    def id_length(self) -> int:
        """Tokens of a soft ID, for which prompts have slots."""
        return self._id_length

    def examples(self, step: int) -> list[tuple[int, int, int]]:
        """Return the (user, position, template) of each example of batch `step`, row by row."""
        return [self._examples[example] for row in self._prompts.rows(step) for example in row]

    def items(self, step: int) -> Int[np.ndarray, "item_rows places"]:
        """Return the item in each place of batch `step`, -1 where a place is free."""
        texts = self._shape.texts
        items = np.full((texts.rows, texts.examples_per_row), -1, np.int64)
        for row, of_row in enumerate(self._texts.rows(step)):
            items[row, : len(of_row)] = of_row
        return items

    def _neighbour_tokens(self, step: int) -> Int[np.ndarray, "item_rows places"] | None:
        """The first token of a follower's ID for each place of batch `step`; None without followers."""
        if self._followers is None:
            return None
        items = self.items(step)
        rng = np.random.default_rng([self._seed, _NEIGHBOURS, self._epoch, step])
        drawn = np.where(items >= 0, self._followers.draw(np.maximum(items, 0), rng), -1)
        firsts = np.asarray([*(tokens[0] for tokens in self._renderer.item_ids), -1], np.int32)
        return firsts[drawn]

    def batch(self, step: int) -> IdBatch:
        """Return batch `step`."""
        rows, item_rows = self._prompts.rows(step), self._texts.rows(step)
        prompts, texts = self._shape.prompts, self._shape.texts
        item_places = np.zeros((texts.rows, texts.examples_per_row), np.int32)
        place: dict[int, int] = {}
        for row, items in enumerate(item_rows):
            item_places[row, : len(items)] = np.arange(1, len(items) + 1)
            place |= {item: row * texts.examples_per_row + index for index, item in enumerate(items)}
        tokens, slot_items, slot_positions, numbers, targets, ways = {}, {}, {}, {}, {}, {}
        for example in (example for row in rows for example in row):
            user, position, template = self._examples[example]
            sequence = self._renderer.dataset.training_sequence(user)
            tokens[example], slots, slot_positions[example], numbers[example], kept = self._renderer.slots(
                user, sequence[:position], template, self._id_length
            )
            # Shifted by one: what no token fills is an ordinary token too.
            places = [0, *(place[int(item)] + 1 for item in kept)]
            slot_items[example] = [places[slot + 1] for slot in slots]
            targets[example] = self._renderer.decoded(int(sequence[position]), template)
            ways[example] = self._renderer.way(int(sequence[position]), template)
        shape = prompts.rows, prompts.source
        choices = None
        if self._renderer.over_catalogue:
            placed = [[(len(targets[example]), ways[example]) for example in row] for row in rows]
            choices = place_choices(self._renderer.choices, placed, prompts.rows, self._room)
        return IdBatch(
            *concatenate(item_rows, self._text_tokens, texts.rows, texts.source),
            item_places,
            *concatenate(rows, tokens, *shape),
            concatenate(rows, slot_items, *shape)[0] - 1,
            concatenate(rows, slot_positions, *shape)[0],
            *concatenate(rows, targets, prompts.rows, prompts.target),
            choices=choices,
            prompt_items=concatenate(rows, numbers, *shape)[0] if self._renderer.is_causal else None,
            neighbour_tokens=self._neighbour_tokens(step),
        )

    def _pack(self, batches: Int[np.ndarray, "batches size"], measured: _Measured) -> tuple[Packed, Packed, list[int]]:
        """Return the rows of prompts and of texts of batches with as many of their examples as fit, and the others.

        At least one example of a batch fits.
        """
        batches, shape = batches.copy(), self._shape
        prompts = Packed.without_examples(len(batches), batches.shape[1], shape.prompts.rows)
        texts = Packed.without_examples(len(batches), shape.items, shape.texts.rows)
        dropped: list[list[int]] = [[] for _ in batches]
        unplanned = np.arange(len(batches))
        while len(unplanned):
            packed = pack(batches[unplanned], measured.prompt_lengths, measured.target_lengths, shape.prompts)
            items = measured.distinct_items(packed.examples, packed.placed())
            few = np.asarray([len(of_batch) <= shape.items for of_batch in items])
            table = as_table([of_batch if fits else [] for of_batch, fits in zip(items, few, strict=True)], shape.items)
            packed_texts = pack(table, self._text_lengths, np.zeros_like(self._text_lengths), shape.texts)
            planned = few & (packed_texts.row != shape.texts.rows).all(axis=1)
            for whole, part in ((prompts, packed), (texts, packed_texts)):
                whole.examples[unplanned[planned]] = part.examples[planned]
                whole.row[unplanned[planned]] = part.row[planned]
            unplanned = unplanned[~planned]
            for batch in unplanned.tolist():
                last = np.flatnonzero(batches[batch] >= 0)[-1]
                dropped[batch].append(int(batches[batch, last]))
                batches[batch, last] = -1
        left = []
        for batch, of_batch in enumerate(dropped):
            left += of_batch + prompts.examples[batch][prompts.row[batch] == shape.prompts.rows].tolist()
        return prompts, texts, left


def _planned_items(measured: _Measured, batch_size: int) -> list[Int[np.ndarray, " _"]]:
    """Return the distinct items of some batches of so many examples, in random order."""
    batches = stratified(measured.prompt_lengths, batch_size, np.random.default_rng(0))[:PLANNED_BATCHES]
    rng = np.random.default_rng(1)
    return [rng.permutation(items) for items in measured.distinct_items(batches, batches >= 0)]


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
