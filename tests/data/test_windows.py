"""Windows: every target once, with at least half a history where there is one, and no longer than a prompt may be."""

from collections import Counter

import numpy as np
import pytest

from idgenrec_jax.data.dataset import Dataset
from idgenrec_jax.data.windows import draw_windows, training_windows
from idgenrec_jax.errors import InputError
from tests.data.test_batches import (
    NUM_ITEMS,
    make_dataset,
    make_renderer,
    training_examples,
    user_ids_from_training_items,
)


def long_dataset(seed):
    """Users of training sequences of 0 to 60 items."""
    rng = np.random.default_rng(seed)
    lengths = [1, 2, 3, 4, *rng.integers(1, 63, 30)]
    names = tuple(map(str, range(len(lengths))))
    items = tuple(map(str, range(NUM_ITEMS)))
    sequences = tuple(rng.integers(0, NUM_ITEMS, length).astype(np.int32) for length in lengths)
    return Dataset("shop", names, items, items, sequences)


def targets_of(windows):
    """The (user, position) of every target."""
    rows = zip(windows.users, windows.targets, windows.ends, strict=True)
    return Counter((int(user), position) for user, first, end in rows for position in range(first, end))


@pytest.mark.parametrize("max_history", [1, 2, 3, 7, 20, 100])
@pytest.mark.parametrize("max_prompt_length", [18, 40, 512])
def test_every_target_is_in_one_window_with_enough_history_and_every_prompt_fits(max_history, max_prompt_length):
    dataset = long_dataset(max_history)
    # Of one to twelve tokens; user IDs are the longest of the fields.
    renderer = make_renderer(dataset, user_ids=None, max_history=max_history, max_prompt_length=max_prompt_length)
    windows = renderer.windows
    assert targets_of(windows) == Counter(training_examples(dataset))
    assert windows.users.tolist() == sorted(windows.users)
    cut = 0
    columns = windows.users, windows.starts, windows.ends, windows.targets
    for user, start, end, target in zip(*(column.tolist() for column in columns), strict=True):
        history = [len(renderer.item_ids[item]) for item in dataset.sequences[user][start : end - 1]]
        assert 1 <= len(history) <= max_history and start < target < end <= len(dataset.training_sequence(user))
        separator = len(renderer.templates[0].separator)
        assert sum(history) + separator * (len(history) - 1) + renderer.longest_fields(0) <= max_prompt_length
        # Where one does not begin with the sequence, half a history is before its first target.
        assert target - start >= min(target, max(1, len(history) // 2))
        assert start == 0 or len(history) in {max(1, max_history >> halved) for halved in range(7)}
        cut += len(history) < min(max_history, end - 1)
    assert bool(cut) == (max_history > {18: 2, 40: 3, 512: 100}[max_prompt_length])


def test_every_prompt_of_a_window_has_at_most_the_longest_length_under_every_template():
    dataset = make_dataset()
    renderer = make_renderer(dataset, user_ids=user_ids_from_training_items, max_prompt_length=36, max_history=6)
    windows = draw_windows(renderer.windows, 10, 0, np.random.default_rng(0))
    whole = 0
    for window in range(len(windows)):
        found = renderer.window(windows, window)
        assert max(found.positions) < 36
        whole += len(found.tokens) > 36
    assert whole, "the prompts of some windows are longer together"


def test_an_id_that_alone_is_too_long_for_a_prompt_is_an_input_error():
    renderer = make_renderer(make_dataset(), user_ids=None, max_prompt_length=512)
    longest = max(map(len, renderer.item_ids))
    fields = renderer.longest_fields(0)

    def with_room(room):
        return make_renderer(make_dataset(), user_ids=None, max_prompt_length=fields + room).windows

    assert targets_of(with_room(longest)) == Counter(training_examples(make_dataset()))
    with pytest.raises(InputError, match=r"max_prompt_length: an ID in the history of user 'user\d+' has more"):
        with_room(longest - 1)


def test_sequences_without_a_target_have_no_window():
    dataset = make_dataset()
    short = Dataset("shop", dataset.users, dataset.items, dataset.item_texts, tuple(s[:1] for s in dataset.sequences))
    starts = np.arange(len(short.users))
    tokens_before = np.arange(len(short.users) + 1)
    windows = training_windows(short, tokens_before, starts, max_history=3, room=10, separator=1)
    assert len(windows) == 0
    assert len(draw_windows(windows, 10, 5, np.random.default_rng(0))) == 0


def test_a_draw_has_every_window_once_in_another_order_under_templates_of_its_own():
    windows = make_renderer(long_dataset(0), max_history=5).windows
    first, again, other = (draw_windows(windows, 10, 0, np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert targets_of(first) == targets_of(windows) == targets_of(other)
    assert first.users.tolist() != sorted(first.users) and first.users.tolist() != other.users.tolist()
    assert set(first.templates.tolist()) == set(range(10))
    for name in ("users", "starts", "templates"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))


@pytest.mark.parametrize("num_targets", [1, 40, 10_000])
def test_a_draw_ends_with_the_window_that_reaches_the_number_of_targets(num_targets):
    windows = make_renderer(long_dataset(0), max_history=5).windows
    drawn = draw_windows(windows, 10, num_targets, np.random.default_rng(3))
    counts = drawn.num_targets()
    assert targets_of(drawn) <= targets_of(windows)
    if num_targets < windows.num_targets().sum():
        assert counts.sum() >= num_targets > counts[:-1].sum()
    else:
        assert len(drawn) == len(windows)
