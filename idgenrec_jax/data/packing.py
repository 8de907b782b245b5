"""Training batches of one fixed shape: a few (prompt, target) pairs share each row, kept apart by segment numbers.

Every batch holds short and long prompts in the same proportions, and every row about the same number of tokens: little
padding is computed, and an epoch needs a single compiled program.
"""

import dataclasses
from collections import deque
from collections.abc import Callable, Mapping, Sequence, Sized
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Int

from idgenrec_jax.data.choices import TargetChoices
from idgenrec_jax.data.row_packing import PackedShape, as_table, joined, pack

WIDTH_MULTIPLE = 8
TARGET_MULTIPLE = 2
MAX_EXAMPLES_PER_ROW = 8
# Attention within a row of this many tokens costs about as much as everything else does (measured on a CPU).
_ATTENTION_WIDTH = 1024
PLANNED_BATCHES = 64
_UNLIMITED = 2**30


class CausalOrder(NamedTuple):
    """What a causal history lets each token of packed windows read (see `prompts.PromptWindow`).

    The target of number k of a segment reads what has a number of at most k, of what is on a branch its own alone.
    """

    numbers: Int[Array | np.ndarray, "rows source"]
    branches: Int[Array | np.ndarray, "rows source"]
    positions: Int[Array | np.ndarray, "rows source"]
    target_numbers: Int[Array | np.ndarray, "rows target"]


class SupervisedBatch(NamedTuple):
    """What either T5 learns from: prompts and targets (ID + EOS), or texts and their words in the warm start.

    Segment s > 0 of a row's prompts and segment s of its targets are one example. Segment 0 is padding, which nothing
    reads: its token is 0 whatever the padding token of the tokenizer. With `choices`, targets end at their last choice.
    With `order`, a segment is a window, with the targets of several prompts.
    """

    prompt_tokens: Int[Array | np.ndarray, "rows source"]
    prompt_segments: Int[Array | np.ndarray, "rows source"]
    target_tokens: Int[Array | np.ndarray, "rows target"]
    target_segments: Int[Array | np.ndarray, "rows target"]
    choices: TargetChoices | None = None
    order: CausalOrder | None = None


def round_up(value: int, multiple: int) -> int:
    """Return the smallest multiple of `multiple` that is at least `value`."""
    return -(-value // multiple) * multiple


@dataclasses.dataclass(frozen=True)
class TokenLists:
    """Token lists that are made when they are asked for; their lengths in tokens are known before.

    `make(example)` returns the list of an example, which has `lengths[example]` tokens.
    """

    lengths: Int[np.ndarray, " examples"]
    make: Callable[[int], Sequence[int]]

    def __len__(self) -> int:
        """Return the number of lists."""
        return len(self.lengths)

    def __getitem__(self, example: int) -> Sequence[int]:
        """Return the tokens of one list."""
        return self.make(example)


def lengths_of(sequences: Sequence[Sized] | TokenLists) -> Int[np.ndarray, " examples"]:
    """Return the lengths in tokens; `TokenLists` are not made for it."""
    if isinstance(sequences, TokenLists):
        return sequences.lengths
    return np.fromiter(map(len, sequences), np.int32, len(sequences))


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
    batches: Int[np.ndarray, "batches _"],
    prompts: Int[np.ndarray, " examples"],
    targets: Int[np.ndarray, " examples"],
    *,
    batch_size: int,
    longest_prompt: int,
    longest_target: int,
    row_multiple: int,
    share: float = 1.0,
) -> PackedShape:
    """Return the shape that computes least for `batches`, each of at most `batch_size` examples.

    `batches` names examples, and -1 where there is none; `prompts` and `targets` are the lengths of all examples. The
    rows of the shape are wide enough for this share of the batches.
    """
    shapes = []
    for examples_per_row in range(1, min(MAX_EXAMPLES_PER_ROW, batch_size) + 1):
        rows = round_up(-(-batch_size // examples_per_row), row_multiple)
        packed = pack(batches, prompts, targets, PackedShape(rows, examples_per_row, _UNLIMITED, _UNLIMITED))
        source, target = (
            max(longest, enough_for(packed.tokens_per_row(lengths).max(axis=1), share))
            for lengths, longest in ((prompts, longest_prompt), (targets, longest_target))
        )
        shapes.append(
            PackedShape(rows, examples_per_row, round_up(source, WIDTH_MULTIPLE), round_up(target, TARGET_MULTIPLE))
        )
    return min(shapes, key=_cost)


def enough_for(values: Sequence[int] | Int[np.ndarray, " values"], share: float) -> int:
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
        prompts: Sequence[Sequence[int]] | TokenLists,
        targets: Sequence[Sequence[int]] | TokenLists,
        *,
        shape: PackedShape,
        batch_size: int,
        rng: np.random.Generator,
    ):
        """Plan the batches from lengths; no token list and no array is made before `batch` asks for it.

        Raises ValueError for a prompt or target that is longer than a row.
        """
        self._prompts, self._targets, self._shape = prompts, targets, shape
        lengths = lengths_of(prompts), lengths_of(targets)
        for found, width in zip(lengths, (shape.source, shape.target), strict=True):
            if len(found) and found.max() > width:
                raise ValueError(f"an example of {found.max()} tokens does not fit a row of {width}")
        self._totals = tuple(int(found.sum()) for found in lengths)
        plan = pack(stratified(lengths[0], batch_size, rng), *lengths, shape)
        further = []
        waiting = deque(plan.without_place().tolist())
        while waiting:
            batch = [waiting.popleft() for _ in range(min(batch_size, len(waiting)))]
            packed = pack(as_table([batch], batch_size), *lengths, shape)
            waiting.extendleft(packed.without_place().tolist()[::-1])
            further.append(packed)
        self._plan = joined([plan, *further])

    def __len__(self) -> int:
        """Return the number of batches."""
        return len(self._plan.examples)

    @property
    def padding_shares(self) -> tuple[float, float]:
        """Shares of the positions of prompts and of targets, over all batches, that hold no token."""
        rows = len(self) * self._shape.rows
        shares = [
            1.0 - tokens / max(1, rows * width)
            for tokens, width in zip(self._totals, (self._shape.source, self._shape.target), strict=True)
        ]
        return shares[0], shares[1]

    def most_in_a_row(self, values: Int[np.ndarray, " examples"]) -> int:
        """Return the largest sum of a value of examples in a row of any batch."""
        return int(self._plan.tokens_per_row(values).max(initial=0))

    def examples(self, step: int) -> list[tuple[Sequence[int], Sequence[int]]]:
        """Return the (prompt, target) pairs that batch `step` holds, row by row."""
        rows = self._plan.rows(step)
        return [(self._prompts[example], self._targets[example]) for row in rows for example in row]

    def rows(self, step: int) -> list[list[int]]:
        """Return the examples of each row of batch `step`."""
        return self._plan.rows(step)

    def batch(self, step: int) -> SupervisedBatch:
        """Return batch `step`."""
        rows = self._plan.rows(step)
        return SupervisedBatch(
            *concatenate(rows, self._prompts, self._shape.rows, self._shape.source),
            *concatenate(rows, self._targets, self._shape.rows, self._shape.target),
        )


def one_example_a_row(
    prompts: Sequence[Sequence[int]], targets: Sequence[Sequence[int]], *, source: int, target: int
) -> SupervisedBatch:
    """Return the batch in which every row is one example, padded to `source` and `target` tokens."""
    plan = [[example] for example in range(len(prompts))]
    return SupervisedBatch(
        *concatenate(plan, prompts, len(plan), source), *concatenate(plan, targets, len(plan), target)
    )


def concatenate(
    plan: Sequence[Sequence[int]],
    sequences: Sequence[Sequence[int]] | TokenLists | Mapping[int, Sequence[int]],
    rows: int,
    width: int,
) -> tuple[Int[np.ndarray, "rows width"], Int[np.ndarray, "rows width"]]:
    """Return the sequences that each row of `plan` names, one after the other, and their segment numbers from 1."""
    tokens, segments = np.zeros((2, rows, width), np.int32)  # [rows, width] each
    for row, examples in enumerate(plan):
        start = 0
        for number, example in enumerate(examples, start=1):
            # Once: `TokenLists` make it anew each time.
            sequence = sequences[example]
            end = start + len(sequence)
            tokens[row, start:end] = sequence
            segments[row, start:end] = number
            start = end
    return tokens, segments


def stratified(
    lengths: Int[np.ndarray, " examples"], batch_size: int, rng: np.random.Generator
) -> Int[np.ndarray, "batches batch_size"]:
    """Return the examples (int32) of each batch: one of every stratum of equal length.

    The batches that have one fewer name -1 instead of the shortest.
    """
    count = len(lengths)
    num_batches = -(-count // batch_size)
    if not num_batches:
        return np.zeros((0, batch_size), np.int32)
    order = np.arange(count, dtype=np.int32)
    rng.shuffle(order)
    # Numbers of 16 bits are sorted in linear time.
    sortable = lengths.astype(np.min_scalar_type(lengths.max()))
    order = order[np.argsort(sortable[order], kind="stable")]
    # [examples] -> [batch_size, batches], a stratum a row, whose free places are among the shortest: least is changed.
    places = np.full(batch_size * num_batches, -1, np.int32)
    places[-count:] = order
    table = places.reshape(batch_size, num_batches)
    rng.permuted(table, axis=1, out=table)
    return np.ascontiguousarray(table.T)  # [batch_size, batches] -> [batches, batch_size]
