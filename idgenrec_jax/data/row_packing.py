"""The row that each example of a batch goes into, for many batches at once."""

import heapq
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int, UInt

# Rows of batches that are packed at once.
_PACKED_TOGETHER = 2**16
# Up to so many batches are packed one by one.
_FEW_BATCHES = 16


class PackedShape(NamedTuple):
    """The shape of every batch: its rows, the most examples in one, and the tokens of prompts and targets in one.

    `choices` and `narrow_choices` are how many choices of targets a row has room for, where they are asked for.
    """

    rows: int
    examples_per_row: int
    source: int
    target: int
    choices: int = 0
    narrow_choices: int = 0


class Packed(NamedTuple):
    """The row of every example of some batches, all of one shape.

    `examples` are ordered by their row, within a row by length. `row` is `num_rows` where an example found no place,
    and one more where the batch has no example.
    """

    examples: Int[np.ndarray, "batches size"]
    row: UInt[np.ndarray, "batches size"]
    num_rows: int

    @classmethod
    def without_examples(cls, num_batches: int, size: int, num_rows: int) -> "Packed":
        """Return the plan of batches that have no example yet."""
        row = np.full((num_batches, size), num_rows + 1, np.min_scalar_type(num_rows + 1))
        return cls(np.full((num_batches, size), -1, np.int32), row, num_rows)

    def rows(self, batch: int) -> list[list[int]]:
        """Return the examples of each row of one batch."""
        counts = np.bincount(self.row[batch], minlength=self.num_rows)[: self.num_rows]
        examples, ends = self.examples[batch].tolist(), np.cumsum(counts)
        return [examples[end - count : end] for end, count in zip(ends.tolist(), counts.tolist(), strict=True)]

    def tokens_per_row(self, lengths: Int[np.ndarray, " examples"]) -> Int[np.ndarray, "batches rows"]:
        """Return the tokens that each row holds, where the examples have these lengths."""
        # Two columns more, for examples without a place and for places without an example.
        sums = np.zeros((len(self.row), self.num_rows + 2), np.int64)
        np.add.at(sums, (np.arange(len(self.row))[:, None], self.row), lengths[self.examples])
        return sums[:, : self.num_rows]

    def placed(self) -> Bool[np.ndarray, "batches size"]:
        """Return which examples have a place."""
        return self.row < self.num_rows

    def without_place(self) -> Int[np.ndarray, " left"]:
        """Return the examples that found no place, batch by batch."""
        return self.examples[self.row == self.num_rows]


def pack(
    batches: Int[np.ndarray, "batches size"],
    prompt_lengths: Int[np.ndarray, " examples"],
    target_lengths: Int[np.ndarray, " examples"],
    shape: PackedShape,
) -> Packed:
    """Return the row of every example of the batches, which name -1 where there is none.

    The longest prompt first, each into the row with the fewest tokens so far of those that have room.
    """
    packed = Packed.without_examples(len(batches), batches.shape[1], shape.rows)
    if len(batches) <= _FEW_BATCHES:
        for batch, examples in enumerate(batches):
            packed.examples[batch], packed.row[batch] = _pack_one(examples, prompt_lengths, target_lengths, shape)
        return packed
    # So many batches at once that what is read again and again stays in the processor's cache.
    together = max(1, _PACKED_TOGETHER // shape.rows)
    for start in range(0, len(batches), together):
        some = slice(start, start + together)
        packed.examples[some], packed.row[some] = _pack_many(batches[some], prompt_lengths, target_lengths, shape)
    return packed


def as_table(batches: Sequence[Sequence[int] | Int[np.ndarray, " _"]], size: int) -> Int[np.ndarray, "batches size"]:
    """Return the examples of each batch as one int32 array, -1 where there is none."""
    return np.asarray([[*batch, *[-1] * (size - len(batch))] for batch in batches], np.int32).reshape(-1, size)


def joined(plans: Sequence[Packed]) -> Packed:
    """Return the batches of several plans of one shape and size as one."""
    examples, rows = (np.concatenate(arrays) for arrays in list(zip(*plans, strict=True))[:2])
    return Packed(examples, rows, plans[0].num_rows)


def _pack_one(
    batch: Int[np.ndarray, " size"],
    prompt_lengths: Int[np.ndarray, " examples"],
    target_lengths: Int[np.ndarray, " examples"],
    shape: PackedShape,
) -> tuple[Int[np.ndarray, " size"], Int[np.ndarray, " size"]]:
    """Return what `_pack_many` returns, for one batch: array operations on so little would take many times as long."""
    rows: list[list[int]] = [[] for _ in range(shape.rows + 2)]
    rows[-1] = batch[batch < 0].tolist()
    examples = batch[batch >= 0]
    examples = examples[np.argsort(-prompt_lengths[examples], kind="stable")]
    targets_used = [0] * shape.rows
    # (tokens of prompts, row) of every row that is not full of examples.
    open_rows = [(0, row) for row in range(shape.rows)]
    lengths = prompt_lengths[examples].tolist(), target_lengths[examples].tolist()
    for example, prompt, target in zip(examples.tolist(), *lengths, strict=True):
        passed = []
        while open_rows:
            used, row = heapq.heappop(open_rows)
            if used + prompt <= shape.source and targets_used[row] + target <= shape.target:
                rows[row].append(example)
                targets_used[row] += target
                if len(rows[row]) < shape.examples_per_row:
                    passed.append((used + prompt, row))
                break
            passed.append((used, row))
        else:
            rows[shape.rows].append(example)
        for entry in passed:
            heapq.heappush(open_rows, entry)
    row_of = np.repeat(np.arange(len(rows)), list(map(len, rows)))
    return np.asarray([example for of_row in rows for example in of_row], np.int32), row_of


def _pack_many(
    batches: Int[np.ndarray, "batches size"],
    prompt_lengths: Int[np.ndarray, " examples"],
    target_lengths: Int[np.ndarray, " examples"],
    shape: PackedShape,
) -> tuple[Int[np.ndarray, "batches size"], Int[np.ndarray, "batches size"]]:
    order = np.argsort(np.where(batches >= 0, -prompt_lengths[batches], 1), axis=1, kind="stable")
    examples = np.take_along_axis(batches, order, axis=1)
    # [batches, size] -> [size, batches]: the longest of every batch, then the second longest of every batch, ...
    prompts, targets = prompt_lengths[examples.T], target_lengths[examples.T]
    # Half the bytes are read in half the time.
    most = max(shape.source, shape.target, prompts.max(), targets.max())
    dtype = np.int16 if most < np.iinfo(np.int16).max else np.int32
    prompts, targets, full = prompts.astype(dtype), targets.astype(dtype), np.iinfo(dtype).max
    exists = examples.T >= 0
    row = np.where(exists, shape.rows, shape.rows + 1)
    prompts_used, targets_used, number_used = np.zeros((3, len(batches), shape.rows), dtype)
    each = np.arange(len(batches))
    for place, (prompt, target) in enumerate(zip(prompts, targets, strict=True)):
        # [batches, rows]; a row that is full of examples counts as full of tokens.
        fits = prompts_used <= (shape.source - prompt)[:, None]
        if target.any():
            fits &= targets_used <= (shape.target - target)[:, None]
        best = np.where(fits, prompts_used, full).argmin(axis=1)  # [batches, rows] -> [batches]
        placed = fits[each, best] & exists[place]
        batch, best = each[placed], best[placed]
        row[place, batch] = best
        prompts_used[batch, best] += prompt[placed]
        targets_used[batch, best] += target[placed]
        number_used[batch, best] += 1
        closed = number_used[batch, best] == shape.examples_per_row
        prompts_used[batch[closed], best[closed]] = full
    row = row.T  # [size, batches] -> [batches, size]
    by_row = np.argsort(row, axis=1, kind="stable")
    return np.take_along_axis(examples, by_row, axis=1), np.take_along_axis(row, by_row, axis=1)
