"""Batches of a recommender phase: of prompts or of windows, with the choices of their targets."""

import dataclasses
from collections import Counter

import jax
import numpy as np
import pytest

from idgenrec_jax.data.recommender_batches import longest_example, recommender_epoch, training_shape
from idgenrec_jax.data.templates import PromptTemplate
from idgenrec_jax.errors import InputError
from tests.data.test_batches import (
    all_batches,
    assert_same_batches,
    differ,
    expected_examples,
    make_dataset,
    make_renderer,
    read_items,
    read_user,
    recommender_batches,
    shapes,
    training_examples,
    user_ids_by_prefix,
    user_ids_from_training_items,
)

# Two target texts, and templates with and without what follows a history.
TEMPLATES = [
    PromptTemplate("sequential", "seen", "red {user_id} then {history} then", "{target}"),
    PromptTemplate("sequential", "seen", "{history} of {user_id}", "a red {target}"),
    PromptTemplate("sequential", "seen", "{user_id} {history}", "{target}"),
]


def renderer_of(*, is_causal, over_catalogue, **settings):
    renderer = make_renderer(make_dataset(), templates=TEMPLATES, **settings)
    return dataclasses.replace(renderer, is_causal=is_causal, over_catalogue=over_catalogue)


def read_targets(renderer, batch):
    """(prompt, target) of every target of a batch, as tokens; the prompt is what the target may read of its segment."""
    found, order = [], batch.order
    for row in range(len(batch.prompt_tokens)):
        segments, tokens = batch.prompt_segments[row], batch.prompt_tokens[row]
        assert not tokens[segments == 0].any()
        of_row = batch.target_segments[row], order.target_numbers[row] if order else batch.target_segments[row] * 0
        for segment, number in dict.fromkeys(zip(*(values.tolist() for values in of_row), strict=True)):
            if not segment:
                continue
            places = np.flatnonzero(segments == segment)
            if order:
                numbers, branches = order.numbers[row][places], order.branches[row][places]
                places = places[(numbers <= number) & ((branches == 0) | (branches == number))]
                positions = order.positions[row][places]
                places = places[np.argsort(positions)]
                assert sorted(positions) == list(range(len(places)))
            of_target = (of_row[0] == segment) & (of_row[1] == number)
            found.append((tokens[places].tolist(), batch.target_tokens[row][of_target].tolist()))
    return found


def read_choices(renderer, batch):
    """The choices of every row: (position in the row's targets, number, token), sorted."""
    rows = []
    for row in range(len(batch.target_tokens)):
        rows.append([])
        for places in (batch.choices, batch.choices.narrow):
            if places is not None:
                columns = places.positions[row], places.nodes[row], renderer.choices.tokens[places.tokens[row]]
                rows[-1] += [entry for entry in zip(*map(np.ndarray.tolist, columns), strict=True) if entry[1] >= 0]
    return [sorted(row) for row in rows]


@pytest.mark.parametrize("max_history", [20, 3])
@pytest.mark.parametrize("over_catalogue", [False, True])
@pytest.mark.parametrize("is_causal", [False, True])
def test_every_target_of_the_training_sequences_is_in_one_batch(is_causal, over_catalogue, max_history):
    renderer = renderer_of(is_causal=is_causal, over_catalogue=over_catalogue, max_history=max_history)
    batches = recommender_batches(renderer)
    found = [pair for batch in all_batches(batches) for pair in read_targets(renderer, batch)]
    ends = {tuple(renderer.decoded(item, template)): item for item in range(30) for template in range(3)}
    read = [(read_user(prompt), read_items(prompt), ends[tuple(target)]) for prompt, target in found]
    expected = expected_examples(renderer.dataset, max_history)
    if not is_causal:
        assert Counter(read) == Counter(expected)
    else:
        # Of a long sequence, the first targets of a window have fewer items before them.
        whole = Counter((user, target) for user, _, target in expected)
        assert Counter((user, target) for user, _, target in read) == whole
        histories = {(user, target, history[len(history) - kept :]) for user, history, target in expected_examples(
            renderer.dataset) for kept in range(1, max_history + 1)}  # fmt: skip
        assert {(user, target, history) for user, history, target in read} <= histories
        assert (Counter(read) == Counter(expected)) == (max_history == 20)


@pytest.mark.parametrize("is_causal", [False, True])
def test_choices_are_those_of_the_targets_at_their_places(is_causal):
    renderer = renderer_of(is_causal=is_causal, over_catalogue=True)
    ways = {}
    for item in range(30):
        for template in range(3):
            way = renderer.choices.way(renderer.way(item, template))
            ways[tuple(renderer.decoded(item, template))] = [(place, node) for place, node, *_ in way]
    for batch in all_batches(recommender_batches(renderer)):
        pairs = iter(read_targets(renderer, batch))
        for row, found in enumerate(read_choices(renderer, batch)):
            assert all(batch.target_tokens[row][place] == token for place, _, token in found)
            expected, start = [], 0
            while start < (batch.target_segments[row] > 0).sum():
                _, target = next(pairs)
                expected += [(start + place, node) for place, node in ways[tuple(target)]]
                start += len(target)
            assert [entry[:2] for entry in found] == expected


def test_a_catalogue_with_narrow_choices_has_all_of_them_in_its_batches():
    renderer = renderer_of(is_causal=True, over_catalogue=True)
    apart = renderer_of(is_causal=True, over_catalogue=True)
    apart.__dict__["choices"] = dataclasses.replace(renderer.choices, mask_limit_bytes=0)
    batches = all_batches(recommender_batches(renderer)), all_batches(recommender_batches(apart))
    for whole, split in zip(*batches, strict=True):
        assert whole.choices.narrow is None and split.choices.narrow is not None
        assert read_choices(renderer, whole) == read_choices(apart, split)


@pytest.mark.parametrize("over_catalogue", [False, True])
@pytest.mark.parametrize("user_ids", [None, user_ids_from_training_items, user_ids_by_prefix])
def test_lengths_of_windows_are_those_of_what_is_rendered(user_ids, over_catalogue):
    renderer = make_renderer(make_dataset(), user_ids=user_ids, max_history=6)
    renderer = dataclasses.replace(renderer, is_causal=True, over_catalogue=over_catalogue)
    longest = longest_example(renderer)
    for template in range(10):
        windows = dataclasses.replace(renderer.windows, templates=np.full(len(renderer.windows), template, np.uint8))
        lengths = [len(renderer.window(windows, window).tokens) for window in range(len(windows))]
        assert renderer.window_lengths(windows).tolist() == lengths
        items = [renderer.window_targets(windows, window).tolist() for window in range(len(windows))]
        targets = [sum(len(renderer.decoded(item, template)) for item in of_window) for of_window in items]
        assert renderer.sums_over_targets(windows, renderer.way_lengths).tolist() == targets
        assert max(lengths) <= longest[0] and max(targets) <= longest[1]


def test_an_epoch_of_windows_is_pure_and_of_one_shape_in_all_epochs():
    renderer = renderer_of(is_causal=True, over_catalogue=True)
    first, again, second = (all_batches(recommender_batches(renderer, epoch=epoch)) for epoch in (1, 1, 2))
    assert_same_batches(first, again)
    assert differ(first, second)
    shape = training_shape(renderer, seed=0, batch_size=8)
    assert len({str(shapes(batch)) for batch in first + second}) == 1
    assert first[0].prompt_tokens.shape == first[0].order.numbers.shape == (shape.rows, shape.source)
    assert first[0].target_tokens.shape == first[0].order.target_numbers.shape == (shape.rows, shape.target)
    assert first[0].choices.nodes.shape == (shape.rows, shape.choices)


@pytest.mark.parametrize("row_multiple", [1, 4])
def test_a_batch_of_windows_has_about_as_many_targets_as_one_of_prompts(row_multiple):
    renderer = renderer_of(is_causal=True, over_catalogue=True)
    shape = training_shape(renderer, seed=0, batch_size=32, row_multiple=row_multiple)
    assert shape.rows % row_multiple == 0
    epoch = recommender_epoch(renderer, seed=0, epoch=0, batch_size=32, num_examples=0, shape=shape)
    counts = [len(read_targets(renderer, batch)) for batch in all_batches(epoch)]
    assert sum(counts) == len(training_examples(renderer.dataset))
    assert 0.7 * 32 < np.mean(counts) < 1.4 * 32


def test_a_causal_epoch_of_some_examples_has_no_more_windows_than_these_need():
    renderer = renderer_of(is_causal=True, over_catalogue=False)
    some = all_batches(recommender_batches(renderer, num_examples=30))
    count = sum(len(read_targets(renderer, batch)) for batch in some)
    assert 30 <= count < 30 + int(renderer.windows.num_targets().max())


def test_held_out_items_leave_no_trace_in_windows():
    renderer = renderer_of(is_causal=True, over_catalogue=True)
    sequences = tuple(sequence.copy() for sequence in renderer.dataset.sequences)
    for sequence in sequences:
        if len(sequence) > 2:
            sequence[-2:] = (sequence[-2:] + 1) % 30
    other = dataclasses.replace(renderer, dataset=dataclasses.replace(renderer.dataset, sequences=sequences))
    assert_same_batches(all_batches(recommender_batches(renderer)), all_batches(recommender_batches(other)))


def test_sequences_of_one_item_are_an_input_error_for_windows_too():
    renderer = renderer_of(is_causal=True, over_catalogue=True)
    sequences = tuple(sequence[:3] if len(sequence) > 2 else sequence[:1] for sequence in renderer.dataset.sequences)
    short = dataclasses.replace(renderer, dataset=dataclasses.replace(renderer.dataset, sequences=sequences))
    with pytest.raises(InputError, match="has nothing for training"):
        recommender_batches(short)


def test_examples_of_a_batch_are_what_it_holds():
    for is_causal in (False, True):
        renderer = renderer_of(is_causal=is_causal, over_catalogue=True)
        batches = recommender_batches(renderer)
        batch = batches.batch(0)
        prompts, targets = zip(*batches.examples(0), strict=True)
        assert sum(map(len, prompts)) == (batch.prompt_segments > 0).sum()
        held = batch.target_tokens[batch.target_segments > 0].tolist()
        assert [token for target in targets for token in target] == held
        assert jax.tree.structure(batch) == jax.tree.structure(batches.batch(1))
