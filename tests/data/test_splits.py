"""Splits that the data give: leave-one-out in their form is leave-one-out, and what they hold out leaves no trace."""

import dataclasses
from functools import partial

import numpy as np
import pytest

from idgenrec_jax.config import Config
from idgenrec_jax.data.followers import Followers
from idgenrec_jax.data.held_out_batches import held_out_batches
from idgenrec_jax.data.sample import sample_tokenizer
from idgenrec_jax.evaluation.popularity import popularity_metrics
from idgenrec_jax.ids.clusters import _information
from idgenrec_jax.ids.neighbours import generator_texts
from idgenrec_jax.training.acceptance import examples_with_items
from tests.data.test_batches import (
    NUM_ITEMS,
    all_batches,
    assert_same_batches,
    differ,
    id_batches,
    make_dataset,
    make_renderer,
    recommender_batches,
    user_ids_by_prefix,
    user_ids_from_training_items,
)

SPLITS = ("validation", "test")


def leave_one_out_as_boundaries(dataset):
    lengths = [len(sequence) for sequence in dataset.sequences]
    ends = [(length - 2, length - 1) if length > 2 else (length, length) for length in lengths]
    return dataclasses.replace(dataset, boundaries=np.asarray(ends, np.int32))


def split_anyhow(dataset):
    """Boundaries anywhere: users with several targets, with none, and with nothing to train on."""
    rng = np.random.default_rng(5)
    ends = [np.sort(rng.integers(0, len(sequence) + 1, 2)) for sequence in dataset.sequences]
    return dataclasses.replace(dataset, boundaries=np.asarray(ends, np.int32))


def with_others(dataset, split):
    """The data with other items as targets of a split."""
    column = SPLITS.index(split)
    ends = [*dataset.boundaries.T, np.asarray([len(sequence) for sequence in dataset.sequences])]
    sequences = [sequence.copy() for sequence in dataset.sequences]
    for sequence, start, end in zip(sequences, ends[column], ends[column + 1], strict=True):
        sequence[start:end] = (sequence[start:end] + 7) % NUM_ITEMS
    return dataclasses.replace(dataset, sequences=tuple(sequences))


def read_of(dataset, user_ids):
    """Every array that training and evaluation read, by phase and split."""
    renderer = make_renderer(dataset, user_ids=user_ids)
    causal = dataclasses.replace(renderer, is_causal=True, over_catalogue=True)
    found = {
        "recommender": all_batches(recommender_batches(renderer)),
        "causal recommender": all_batches(recommender_batches(causal, epoch=1)),
        "id": all_batches(id_batches(renderer, items_per_batch=24)),
    }
    for split in SPLITS:
        batches, users, targets = held_out_batches(renderer, split, template=0, batch_size=4, with_seen=True)
        found[split] = [(batch.prompt_tokens, batch.prompt_mask, batch.seen) for batch in all_batches(batches)]
        found[f"{split} targets"] = [(users, targets)]
    return found


@pytest.mark.parametrize("user_ids", [user_ids_from_training_items, user_ids_by_prefix])
def test_leave_one_out_as_boundaries_is_leave_one_out(user_ids):
    dataset = make_dataset()
    other = leave_one_out_as_boundaries(dataset)
    before, after = read_of(dataset, user_ids), read_of(other, user_ids)
    for name, batches in before.items():
        assert_same_batches(batches, after[name])
    np.testing.assert_array_equal(dataset.evaluation_users, other.evaluation_users)
    for split in SPLITS:
        assert popularity_metrics(dataset, split, num_results=20) == popularity_metrics(other, split, num_results=20)
        for user in dataset.evaluation_users.tolist():
            (history, target), (same, item) = dataset.held_out(user, split), other.held_out(user, split)
            assert history.tolist() == same.tolist() and target == item


def test_what_boundaries_hold_out_leaves_no_trace_before_it():
    user_ids = user_ids_from_training_items
    dataset = split_anyhow(make_dataset())
    counts = [np.unique(dataset.held_out_cases(split)[0], return_counts=True)[1].max() for split in SPLITS]
    assert min(counts) > 2 and not all(len(dataset.training_sequence(user)) for user in range(len(dataset.users)))
    before = read_of(dataset, user_ids)
    other = with_others(dataset, "test")
    after, after_both = read_of(other, user_ids), read_of(with_others(other, "validation"), user_ids)
    for phase in ("recommender", "causal recommender", "id"):
        assert_same_batches(before[phase], after[phase])
        assert_same_batches(before[phase], after_both[phase])
    for name in ("validation", "validation targets"):
        assert_same_batches(before[name], after[name])
        assert differ(before[name], after_both[name])
    assert differ(before["test targets"], after["test targets"])
    assert differ(before["test"], after["test"]), "a test target is a part of the history of the next one"


def test_ids_and_popularity_know_nothing_of_what_boundaries_hold_out():
    dataset = split_anyhow(make_dataset())
    other = with_others(with_others(dataset, "test"), "validation")
    config = Config().override({"data.neighbour_items": 3})
    made = {
        "followers": lambda data: [found.tolist() for found in Followers(data).most_frequent(3)],
        # All that clusters know of interactions.
        "clusters": lambda data: _information(data).toarray().tolist(),
        "neighbours": partial(generator_texts, tokenizer=sample_tokenizer(), config=config),
        "acceptance": lambda data: [found.tolist() for found in examples_with_items(data, 5)],
    }
    whole = dataclasses.replace(
        other, boundaries=np.asarray([(len(sequence),) * 2 for sequence in other.sequences], np.int32)
    )
    for name, make in made.items():
        assert make(dataset) == make(other), name
        assert make(dataset) != make(whole), f"{name}: more to train on must tell"


def test_popularity_of_several_targets_a_user():
    """Trained on: item 0 three times, item 1 twice, item 2 once, items 3 and 4 never."""
    rows = {(0, 1, 0, 4, 1, 2): (3, 5), (1, 0, 3): (2, 2), (2, 2, 2, 0): (1, 4)}
    dataset = dataclasses.replace(
        make_dataset(),
        users=("ann", "bob", "cy"),
        sequences=tuple(np.asarray(row, np.int32) for row in rows),
        boundaries=np.asarray(list(rows.values()), np.int32),
    )
    # Validation: ann's 4 and 1, and cy's 2, 2 and 0. Ties count against the target; 25 more items were never bought.
    places = {4: NUM_ITEMS, 1: 2, 2: 3, 0: 1}
    found = popularity_metrics(dataset, "validation", num_results=20)
    assert found["hr@1"] == 1 / 5 and found["hr@5"] == 4 / 5
    assert found["mrr@20"] == pytest.approx(sum(1 / places[item] for item in (1, 2, 2, 0)) / 5)
    # Test: ann's 2 and bob's 3.
    assert popularity_metrics(dataset, "test", num_results=20)["hr@5"] == 1 / 2
