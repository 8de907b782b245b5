"""What a data set asks of a model, counted by hand on a few sequences."""

import dataclasses
import json

import numpy as np
import pytest

from idgenrec_jax.data.checks import key_steps
from idgenrec_jax.data.dataset import Dataset
from idgenrec_jax.data.inspection import (
    Distribution,
    count_in_buckets,
    distribution,
    inspect_data,
    measure_texts,
)
from idgenrec_jax.data.sample import sample_tokenizer
from idgenrec_jax.errors import InputError


def make_dataset(*sequences, texts=None, items="abcdefgh"):
    """Users 0, 1, ... with sequences spelled in the one-letter keys of items."""
    return Dataset(
        name="shop",
        users=tuple(map(str, range(len(sequences)))),
        items=tuple(items),
        item_texts=tuple(texts or [f"title: {item}" for item in items]),
        sequences=tuple(np.asarray([items.index(key) for key in keys], np.int32) for keys in sequences),
    )


def test_the_numbers_of_five_users():
    texts = ["title: one", "title: two", "title: one", "", "", "title: three", "title: four", "title: five"]
    found = inspect_data(make_dataset("abcab", "hgfed", "acc", "ba", "bacda", texts=texts))
    assert (found.users, found.items, found.interactions) == (5, 8, 20)
    # Three are long enough; one goes down all the way.
    assert found.order.judged_users == 3 and found.order.in_key_order == pytest.approx(1 / 3)
    # Up: ab bc ab, -, ac, -, ac cd; down: ca, hg gf fe ed, -, ba, ba da; cc goes nowhere.
    order = found.order
    assert (order.ascending, order.descending, order.transitions) == (6, 8, 15)
    assert order.share_ascending == pytest.approx(6 / 15)
    assert (found.users_with_repeats, found.repeated_interactions) == (3, 4)
    # Test targets b, d, c, a: b, c and a were there before, c right before; d and c are in no training sequence but
    # c of the first user's.
    held_out = found.held_out
    assert (held_out.targets, held_out.in_history, held_out.same_as_previous) == (4, 3, 1)
    assert (held_out.cold, held_out.cold_items) == (1, 1)
    # Training: abc, hgf, a, ba, bac.
    assert found.training_transitions == 2 + 2 + 0 + 1 + 2
    assert found.history_lengths == Distribution(2, 3.5, 4.0, 4.0, 4.0, 4, 3.5)
    assert found.users_by_interactions == {"2": 1, "3": 1, "4": 0, "5-9": 3}
    assert found.items_by_interactions == {"1": 4, "2": 1, "3": 0, "4": 2, "5-9": 1}
    assert (found.blank_texts, found.duplicate_texts) == (2, 2)


def test_a_user_with_several_targets_counts_with_each():
    dataset = make_dataset("abcab", "hgg", "cd")
    # Trained on: ab, h, cd; tested on: a and b after c, the second g after the first.
    boundaries = np.asarray([[2, 3], [1, 2], [2, 2]])
    found = inspect_data(dataclasses.replace(dataset, boundaries=boundaries, split_description="by hand"))
    held_out = found.held_out
    assert (held_out.targets, held_out.in_history, held_out.same_as_previous) == (3, 3, 1)
    assert (held_out.cold, held_out.cold_items) == (1, 1)
    assert (found.split, found.training_transitions, found.history_lengths.median) == ("by hand", 2, 3.0)


def test_steps_between_sequences_are_no_transitions():
    sequences = [np.asarray(keys, np.int32) for keys in ([0, 1], [0], [1], [0, 1, 1])]
    assert key_steps(("a", "b"), sequences) == (2, 0, 3)
    # As text: "i10" is before "i9".
    assert key_steps(("i9", "i10"), sequences) == (0, 2, 3)
    assert key_steps(("a",), []) == (0, 0, 0)


def test_distributions_and_buckets():
    assert distribution(np.arange(11)) == Distribution(0, 2.5, 5.0, 7.5, 9.0, 10, 5.0)
    assert distribution(np.zeros(0, np.int64)) == Distribution(0, 0.0, 0.0, 0.0, 0.0, 0, 0.0)
    assert count_in_buckets(np.asarray([0, 4, 5, 9, 10, 5000])) == {
        "0": 1, "1": 0, "2": 0, "3": 0, "4": 1, "5-9": 2, "10-19": 1, "20-49": 0, "50-99": 0, "100-199": 0,
        "200-499": 0, "500-999": 0, "1000+": 1,
    }  # fmt: skip
    assert count_in_buckets(np.zeros(0, np.int64)) == {}


def test_texts_are_measured_in_words_or_in_tokens():
    texts = ["title: Verano kettle", "", "चाय का प्याला"]
    words = measure_texts(texts)
    assert (words.unit, words.lengths.maximum, words.by_length) == ("words", 3, {"0": 1, "1": 0, "2": 0, "3": 2})
    tokenizer = sample_tokenizer()
    tokens = measure_texts(texts, tokenizer)
    assert tokens.unit == "tokens" and tokens.lengths.maximum == max(map(len, tokenizer.encode_batch(texts)))


@pytest.mark.parametrize("name", ["dataset_card.json", "preparation.json"])
def test_ties_are_what_the_card_of_the_folder_tells(tmp_path, name):
    dataset = make_dataset("abc")
    assert inspect_data(dataset).order.tied_interactions is None
    assert inspect_data(dataset, tmp_path).order.tied_interactions is None
    (tmp_path / name).write_text(json.dumps({"tied_interactions": 2}))
    found = inspect_data(dataset, tmp_path)
    assert found.order.tied_interactions == 2 and "2 interactions tied in time" in "\n".join(found.summary())
    (tmp_path / name).write_text("[")
    with pytest.raises(InputError, match="expected a JSON document"):
        inspect_data(dataset, tmp_path)


def faults(dataset, folder=None):
    return [finding.text for finding in inspect_data(dataset, folder).findings if finding.defeats_test]


def test_what_defeats_the_test_split(tmp_path):
    assert faults(make_dataset("badce", "hafcb", "gbdah")) == []
    (fault,) = faults(make_dataset("abcde", "cdefg", "badce"))
    assert fault.startswith("Not in the order of time") and "66.7%" in fault
    (fault,) = faults(make_dataset("badee", "hafcc", "gbdah"))
    assert fault.startswith("66.7% of the test targets are the item right before them again")
    (fault,) = faults(make_dataset("ab", "cd"))
    assert fault.startswith("Nothing to test on")
    (fault,) = faults(make_dataset("bad", "had"))
    assert fault.startswith("Nothing can be trained on")
    (tmp_path / "dataset_card.json").write_text('{"tied_interactions": 15}')
    (fault,) = faults(make_dataset("badce", "hafcb", "gbdah"), tmp_path)
    assert fault.startswith("Hardly any order: 100.0%")


def test_what_is_worth_a_remark(tmp_path):
    rng = np.random.default_rng(0)
    # The first four items are in order, the last is not: three of four steps go up, and no sequence is in order.
    rows = ["".join(sorted(rng.permutation(list("bcdefgh"))[:4])) + "a" for _ in range(400)]
    (tmp_path / "preparation.json").write_text('{"tied_interactions": 1200}')
    found = inspect_data(make_dataset(*rows, texts=["title: one", "title: one", "", *"defgh"]), tmp_path)
    remarks = " ".join(finding.text for finding in found.findings)
    assert not any(finding.defeats_test for finding in found.findings)
    assert "75.0% of the transitions between different items go up" in remarks
    assert "60.0% of the interactions share user and time" in remarks
    assert "100.0% of the test targets are in no training sequence" in remarks
    assert "12.5% of the items have no text" in remarks and "25.0% of the items have the text of another" in remarks
    assert len(found.summary()) == 5
    repeating = " ".join(one.text for one in inspect_data(make_dataset("badca", "hafch", "gbdad")).findings)
    assert "100.0% of the test targets are in the history already" in repeating


@pytest.mark.parametrize("rows", [["a"], ["aaaaaa"], ["a", "a"], []])
def test_one_item_one_user_or_none(rows):
    found = inspect_data(make_dataset(*rows, items="a"))
    assert found.interactions == sum(map(len, rows)) and all(found.summary())
