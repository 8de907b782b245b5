"""Windows: stretches of a user's training sequence whose targets are all learned in one pass.

A window of n items has the prompts of up to n - 1 targets: each reads the items before it. A sequence that is too long
for one prompt is cut into windows that overlap, no target in two of them. Where the last is short, it is filled up with
history.
"""

import dataclasses

import numpy as np
from jaxtyping import Int, UInt

from idgenrec_jax.data.dataset import Dataset
from idgenrec_jax.data.examples import ragged_ranges
from idgenrec_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Windows:
    """Items `starts` up to but without `ends` of users' sequences; the targets are those from `targets` on. All int32.

    `templates` are the templates of an epoch, in the smallest unsigned type for them.
    """

    users: Int[np.ndarray, " windows"]
    starts: Int[np.ndarray, " windows"]
    ends: Int[np.ndarray, " windows"]
    targets: Int[np.ndarray, " windows"]
    templates: UInt[np.ndarray, " windows"]

    def __len__(self) -> int:
        """Return the number of windows."""
        return len(self.users)

    def num_targets(self) -> Int[np.ndarray, " windows"]:
        """Return how many targets each window has."""
        return self.ends - self.targets

    def choose(self, windows: Int[np.ndarray, " chosen"]) -> "Windows":
        """Return some of the windows, in this order."""
        return Windows(*(getattr(self, field.name)[windows] for field in dataclasses.fields(self)))


def training_windows(
    dataset: Dataset,
    tokens_before: Int[np.ndarray, " prefixes"],
    sequence_starts: Int[np.ndarray, " users"],
    *,
    max_history: int,
    room: int,
    separator: int,
) -> Windows:
    """Return the windows of all training sequences, in the order of users.

    A history has at most `max_history` items, whose IDs and separators have at most `room` tokens. The IDs of the first
    n items of all sequences, one after the other, have `tokens_before[n]` tokens, a sequence begins at
    `sequence_starts`.

    Raises:
        InputError: one item alone has more tokens than there is room for.
    """
    lengths = np.fromiter(map(len, map(dataset.training_sequence, range(len(dataset.users)))), np.int64)
    waiting = np.flatnonzero(lengths > 1)
    made = []
    history = max_history
    while len(waiting):
        windows = _cut(waiting, lengths[waiting], history)
        firsts = sequence_starts[windows.users] + windows.starts
        lasts = sequence_starts[windows.users] + windows.ends - 1
        tokens = tokens_before[lasts] - tokens_before[firsts] + separator * (windows.ends - windows.starts - 2)
        too_long = np.unique(windows.users[tokens > room])
        if len(too_long) and history == 1:
            user = dataset.users[int(too_long[0])]
            raise InputError(
                f"--config.data.max_prompt_length: an ID in the history of user {user!r} has more than the {room} "
                "tokens that a prompt has room for; raise it, or make IDs shorter"
            )
        made.append(windows.choose(np.flatnonzero(~np.isin(windows.users, too_long))))
        waiting, history = too_long, max(1, history // 2)
    parts = made or [_cut(waiting, lengths[waiting], history)]
    whole = Windows(
        *(np.concatenate([getattr(part, field.name) for part in parts]) for field in dataclasses.fields(Windows))
    )
    return whole.choose(np.argsort(whole.users, kind="stable"))


def _cut(users: Int[np.ndarray, " users"], lengths: Int[np.ndarray, " users"], history: int) -> Windows:
    """Return the windows of at most `history` + 1 items of sequences of these lengths."""
    # So many items of history has the first target of a window that is not a sequence's first.
    overlap = max(1, history // 2)
    step = history + 1 - overlap
    # The first window ends after history + 1 items, each further one `step` items later.
    counts = 1 + np.maximum(0, -(-(lengths - history - 1) // step))
    number = ragged_ranges(np.zeros(len(users), np.int64), counts)
    user, length = np.repeat(users, counts), np.repeat(lengths, counts)
    ends = np.minimum(history + 1 + number * step, length)
    starts = np.maximum(ends - history - 1, 0)
    targets = np.where(number == 0, 1, history + 1 + (number - 1) * step)
    user, starts, ends, targets = (array.astype(np.int32) for array in (user, starts, ends, targets))
    return Windows(user, starts, ends, targets, np.zeros(len(user), np.uint8))


def draw_windows(
    windows: Windows, num_templates: int, num_targets: int, rng: np.random.Generator
) -> Windows:
    """Return the windows in random order, each under a template of its own; as many as have `num_targets` (0: all)."""
    order = rng.permutation(len(windows))
    if num_targets:
        reached = np.cumsum(windows.num_targets()[order])
        order = order[: int(np.searchsorted(reached, num_targets)) + 1]
    templates = rng.integers(num_templates, size=len(order)).astype(np.min_scalar_type(num_templates - 1))
    return dataclasses.replace(windows.choose(order), templates=templates)
