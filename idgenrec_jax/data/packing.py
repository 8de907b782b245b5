"""Training batches of one fixed shape: a few (prompt, target) pairs share each row, kept apart by segment numbers.

Every batch holds short and long prompts in the same proportions, and every row about the same number of tokens: little
padding is computed, and an epoch needs a single compiled program.
"""

import heapq
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Int

WIDTH_MULTIPLE = 8
TARGET_MULTIPLE = 2
MAX_EXAMPLES_PER_ROW = 8
# Attention within a row of this many tokens costs about as much as everything else does (measured on a CPU).
_ATTENTION_WIDTH = 1024
PLANNED_BATCHES = 64
_UNLIMITED = 2**30


class RecommenderBatch(NamedTuple):
    """Prompts and the target tokens (ID + EOS) that follow them; also texts and words in the warm start.

    Segment s > 0 of a row's prompts and segment s of its targets are one example; segment 0 is padding.
    """

    prompt_tokens: Int[Array | np.ndarray, "rows source"]
    prompt_segments: Int[Array | np.ndarray, "rows source"]
    target_tokens: Int[Array | np.ndarray, "rows target"]
    target_segments: Int[Array | np.ndarray, "rows target"]


class PackedShape(NamedTuple):
    """The shape of every batch: its rows, the most examples in one, and the tokens of prompts and targets in one."""

    rows: int
    examples_per_row: int
    source: int
    target: int


def round_up(value: int, multiple: int) -> int:
    """Return the smallest multiple of `multiple` that is at least `value`."""
    return -(-value // multiple) * multiple


def plan_shape(
    prompt_lengths: Sequence[int] | Int[np.ndarray, " examples"],
    target_lengths: Sequence[int] | Int[np.ndarray, " examples"],
    *,
    batch_size: int,
    longest_prompt: int,
    longest_target: int,
    row_multiple: int = 1,
) -> PackedShape:
    """Return the shape that computes least for batches of `batch_size` examples of these lengths in tokens.

    The lengths may be those of a sample of the examples, of which none exceeds `longest_prompt` and `longest_target`.
    The number of rows is a multiple of `row_multiple`.
    """
    prompts, targets = np.asarray(prompt_lengths), np.asarray(target_lengths)
    batches = stratified(prompts, batch_size, np.random.default_rng(0))[:PLANNED_BATCHES]
    return cheapest_shape(
        batches,
        prompts,
        targets,
        batch_size=batch_size,
        longest_prompt=longest_prompt,
        longest_target=longest_target,
        row_multiple=row_multiple,
    )


def cheapest_shape(
    batches: Sequence[Int[np.ndarray, " _"]],
    prompts: Int[np.ndarray, " examples"],
    targets: Int[np.ndarray, " examples"],
    *,
    batch_size: int,
    longest_prompt: int,
    longest_target: int,
    row_multiple: int,
    share: float = 1.0,
) -> PackedShape:
    """Return the shape that computes least for `batches`, which name at most `batch_size` examples each, by length.

    Its rows are wide enough for this share of the batches.
    """
    shapes = []
    for examples_per_row in range(1, min(MAX_EXAMPLES_PER_ROW, batch_size) + 1):
        rows = round_up(-(-batch_size // examples_per_row), row_multiple)
        unlimited = PackedShape(rows, examples_per_row, _UNLIMITED, _UNLIMITED)
        packed = [pack(batch, prompts, targets, unlimited)[0] for batch in batches]
        source, target = (
            max(longest, enough_for([max(int(lengths[row].sum()) for row in batch) for batch in packed], share))
            for lengths, longest in ((prompts, longest_prompt), (targets, longest_target))
        )
        shapes.append(
            PackedShape(rows, examples_per_row, round_up(source, WIDTH_MULTIPLE), round_up(target, TARGET_MULTIPLE))
        )
    return min(shapes, key=_cost)


def enough_for(values: Sequence[int], share: float) -> int:
    """Return the least of the values that at least this share of them does not exceed."""
    return int(np.quantile(values, share, method="higher"))


def _cost(shape: PackedShape) -> float:
    """How much a batch of this shape computes: its positions, and more for each where rows are wide."""
    return shape.rows * (shape.source + shape.target) * (1 + shape.source / _ATTENTION_WIDTH)


class PackedBatches:
    """The batches of an epoch, each example in one of them, in random order.

    A batch takes one example from each of `batch_size` strata of prompt lengths. What does not fit its batch, which is
    rare, comes in further batches at the end.
    """

    def __init__(
        self,
        prompts: Sequence[Sequence[int]],
        targets: Sequence[Sequence[int]],
        *,
        shape: PackedShape,
        batch_size: int,
        rng: np.random.Generator,
    ):
        """Plan the batches; no array is made before `batch` asks for it.

        Raises ValueError for a prompt or target that is longer than a row.
        """
        self._prompts, self._targets, self._shape = prompts, targets, shape
        lengths = tuple(np.asarray([len(tokens) for tokens in rows], int) for rows in (prompts, targets))
        for found, width in zip(lengths, (shape.source, shape.target), strict=True):
            if len(found) and found.max() > width:
                raise ValueError(f"an example of {found.max()} tokens does not fit a row of {width}")
        self._plan: list[list[list[int]]] = []
        remaining: list[int] = []
        for examples in stratified(lengths[0], batch_size, rng):
            rows, left = pack(examples, *lengths, shape)
            self._plan.append(rows)
            remaining += left
        while remaining:
            rows, left = pack(np.asarray(remaining[:batch_size]), *lengths, shape)
            self._plan.append(rows)
            remaining = left + remaining[batch_size:]

    def __len__(self) -> int:
        """Return the number of batches."""
        return len(self._plan)

    @property
    def padding_shares(self) -> tuple[float, float]:
        """Shares of the positions of prompts and of targets, over all batches, that hold no token."""
        rows = len(self._plan) * self._shape.rows
        shares = [
            1.0 - sum(map(len, tokens)) / max(1, rows * width)
            for tokens, width in ((self._prompts, self._shape.source), (self._targets, self._shape.target))
        ]
        return shares[0], shares[1]

    def examples(self, step: int) -> list[tuple[Sequence[int], Sequence[int]]]:
        """Return the (prompt, target) pairs that batch `step` holds, row by row."""
        return [(self._prompts[example], self._targets[example]) for row in self._plan[step] for example in row]

    def batch(self, step: int) -> RecommenderBatch:
        """Return batch `step`."""
        plan = self._plan[step]
        return RecommenderBatch(
            *concatenate(plan, self._prompts, self._shape.rows, self._shape.source),
            *concatenate(plan, self._targets, self._shape.rows, self._shape.target),
        )


def one_example_a_row(
    prompts: Sequence[Sequence[int]], targets: Sequence[Sequence[int]], *, source: int, target: int
) -> RecommenderBatch:
    """Return the batch in which every row is one example, padded to `source` and `target` tokens."""
    plan = [[example] for example in range(len(prompts))]
    return RecommenderBatch(
        *concatenate(plan, prompts, len(plan), source), *concatenate(plan, targets, len(plan), target)
    )


def concatenate(
    plan: Sequence[Sequence[int]],
    sequences: Sequence[Sequence[int]] | Mapping[int, Sequence[int]],
    rows: int,
    width: int,
) -> tuple[Int[np.ndarray, "rows width"], Int[np.ndarray, "rows width"]]:
    """Return the sequences that each row of `plan` names, one after the other, and their segment numbers from 1."""
    tokens, segments = np.zeros((2, rows, width), np.int32)
    for row, examples in enumerate(plan):
        start = 0
        for number, example in enumerate(examples, start=1):
            end = start + len(sequences[example])
            tokens[row, start:end] = sequences[example]
            segments[row, start:end] = number
            start = end
    return tokens, segments


def stratified(
    lengths: Int[np.ndarray, " examples"], batch_size: int, rng: np.random.Generator
) -> list[Int[np.ndarray, " batch"]]:
    """Return the examples of each batch: one of every stratum of equal length, the last few batches one fewer."""
    count = len(lengths)
    num_batches = -(-count // batch_size)
    if not num_batches:
        return []
    order = rng.permutation(count)
    order = order[np.argsort(lengths[order], kind="stable")]
    # The places that stay free are among the shortest, where they change the least.
    table = np.full(batch_size * num_batches, -1)
    table[-count:] = order
    table = rng.permuted(table.reshape(batch_size, num_batches), axis=1)
    return [column[column >= 0] for column in table.T]


def pack(
    examples: Int[np.ndarray, " batch"],
    prompt_lengths: Int[np.ndarray, " examples"],
    target_lengths: Int[np.ndarray, " examples"],
    shape: PackedShape,
) -> tuple[list[list[int]], list[int]]:
    """Return the examples of each row, and those that found no place.

    The longest prompt first, each into the row with the fewest tokens so far of those that have room.
    """
    rows: list[list[int]] = [[] for _ in range(shape.rows)]
    target = [0] * shape.rows
    remaining = []
    # (tokens of prompts, row) of every row that is not full of examples.
    open_rows = [(0, row) for row in range(shape.rows)]
    for example in examples[np.argsort(-prompt_lengths[examples], kind="stable")].tolist():
        prompt_length, target_length = int(prompt_lengths[example]), int(target_lengths[example])
        passed = []
        while open_rows:
            source, row = heapq.heappop(open_rows)
            if source + prompt_length <= shape.source and target[row] + target_length <= shape.target:
                rows[row].append(example)
                target[row] += target_length
                if len(rows[row]) < shape.examples_per_row:
                    passed.append((source + prompt_length, row))
                break
            passed.append((source, row))
        else:
            remaining.append(example)
        for entry in passed:
            heapq.heappush(open_rows, entry)
    return rows, remaining
