"""The numpy batches of evaluation: held-out prompts, a row each.

They are sorted into a few buckets of length, so that little padding is computed and few programs are compiled. Batches
are planned from lengths alone: a prompt is rendered when its batch is asked for.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Int

from idgenrec_jax.data.choices import TargetChoices, place_choices
from idgenrec_jax.data.examples import Examples, held_out_examples
from idgenrec_jax.data.packing import WIDTH_MULTIPLE
from idgenrec_jax.data.renderer import PromptRenderer
from idgenrec_jax.errors import InputError

MAX_BUCKETS = 4
BATCHES_PER_BUCKET = 16
"""Full batches for which one more bucket is worth the compilation of one more program."""


class HeldOutBatch(NamedTuple):
    """Prompts and the target tokens (ID + EOS) that should follow them, one example a row; other rows are padding.

    `prompt_items`, where the history is causal, is the number of the history item that each token of the prompt belongs
    to (see `PromptTokens.render_numbered`). `choices`, over the catalogue, are those of the targets, which end at the
    last. `seen`, where such items are removed, is all that came before the target; -1 fills it up.
    """

    prompt_tokens: Int[Array | np.ndarray, "batch source"]
    prompt_mask: Bool[Array | np.ndarray, "batch source"]
    target_tokens: Int[Array | np.ndarray, "batch target"]
    target_mask: Bool[Array | np.ndarray, "batch target"]
    prompt_items: Int[Array | np.ndarray, "batch source"] | None = None
    choices: TargetChoices | None = None
    seen: Int[Array | np.ndarray, "batch seen"] | None = None


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
        renderer: PromptRenderer,
        examples: Examples,
        *,
        widths: Sequence[int],
        batch_size: int,
        with_seen: bool = False,
    ):
        """Plan the batches from lengths; no prompt is made before `batch` asks for it."""
        self._renderer, self._examples, self._batch_size = renderer, examples, batch_size
        self._targets, self._target_items = renderer.targets(examples), renderer.target_items(examples)
        lengths = renderer.prompts(examples).lengths
        # [examples]: the widths of what came before the targets, in powers of two, so that few programs are compiled.
        self._seen_width = power_of_two(int(examples.positions.max(initial=1))) if with_seen else 0
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
        (width, rows), renderer, size = self._plan[step], self._renderer, self._batch_size
        examples = [self._examples[row] for row in rows.tolist()]
        histories = [renderer.dataset.sequences[user][:position] for user, position, _ in examples]
        numbered = [
            renderer.numbered_prompt(user, history, template)
            for (user, _, template), history in zip(examples, histories, strict=True)
        ]
        choices = None
        if renderer.over_catalogue:
            ways = [
                [(0, renderer.way(int(self._target_items[row]), template))]
                for row, (_, _, template) in zip(rows.tolist(), examples, strict=True)
            ]
            choices = place_choices(renderer.choices, ways, size, renderer.most_choices)
        return HeldOutBatch(
            *pad_rows([tokens for tokens, _ in numbered], size, width),
            *pad_rows([self._targets[row] for row in rows.tolist()], size, renderer.target_width()),
            prompt_items=pad_rows([items for _, items in numbered], size, width)[0] if renderer.is_causal else None,
            choices=choices,
            seen=pad_rows(list(map(np.ndarray.tolist, histories)), size, self._seen_width, fill=-1)[0]
            if self._seen_width
            else None,
        )


def power_of_two(value: int) -> int:
    """Return the smallest power of two that is at least `value`."""
    return 1 << max(0, value - 1).bit_length()


def held_out_batches(
    renderer: PromptRenderer,
    split: str,
    *,
    template: int,
    batch_size: int,
    num_buckets: int | None = None,
    with_seen: bool = False,
) -> tuple[BucketedBatches, Int[np.ndarray, " targets"], Int[np.ndarray, " targets"]]:
    """Return the prompts of a held-out split by length, the user of each target, and the target's item (int32).

    A user has as many examples as targets in the split.

    `num_buckets` is the most widths that prompts are padded to; None: as many as are worth it, up to MAX_BUCKETS.
    `with_seen`: each batch has the items that came before its targets.
    """
    examples = held_out_examples(renderer.dataset, split, template)
    if not len(examples):
        raise InputError(
            f"the data {renderer.dataset.name!r} has no {split} target, nobody to evaluate; add users with 3 items or "
            "more or, where the data say how they are split, with more held-out items"
        )
    if num_buckets is None:
        num_buckets = min(MAX_BUCKETS, 1 + len(examples) // (BATCHES_PER_BUCKET * batch_size))
    batches = BucketedBatches(
        renderer,
        examples,
        widths=bucket_widths(renderer.prompts(examples).lengths, num_buckets),
        batch_size=batch_size,
        with_seen=with_seen,
    )
    return batches, examples.users, renderer.target_items(examples)
