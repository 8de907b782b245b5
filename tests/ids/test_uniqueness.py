import logging

import numpy as np
import pytest

from idgenrec_jax.errors import InputError
from idgenrec_jax.ids.table import clean_to_words, without_repeats
from idgenrec_jax.ids.uniqueness import MIN_LENGTHS, PENALTIES, assign_unique_ids


class Recorder:
    """Turns a function (item, length, penalty) -> texts into `candidates`, and keeps what was asked."""

    def __init__(self, texts_of):
        self.texts_of, self.calls = texts_of, []

    def __call__(self, items, min_lengths, penalties):
        asked = list(zip(items.tolist(), min_lengths.tolist(), penalties.tolist(), strict=True))
        self.calls.append(asked)
        return [self.texts_of(*stage) for stage in asked]


def one_after_the_other(texts_of, num_items, tokenizer, stages):
    """The published loop: an item is finished before the next is looked at."""
    taken, ids = set(), []
    for item in range(num_items):
        ids.append(None)
        for length, penalty in stages:
            for text in map(clean_to_words, texts_of(item, length, penalty)):
                tokens = tuple(tokenizer.encode(text))
                if tokens and len(tokens) <= 30 and tokens not in taken:
                    ids[item] = (text, tokens)
                    taken.add(tokens)
                    break
            if ids[item] is not None:
                break
    return ids


def assign(texts_of, num_items, tokenizer, **options):
    recorder = Recorder(texts_of)
    names = [f"item{index}" for index in range(num_items)]
    assigned = assign_unique_ids(recorder, num_items, tokenizer=tokenizer, item_names=names, **options)
    return [(choice.text, choice.tokens) for choice in assigned], recorder, assigned


ALL_STAGES = [(length, penalty) for length in MIN_LENGTHS for penalty in PENALTIES]


def test_300_items_that_share_20_texts(tokenizer):
    def texts_of(item, length, penalty):
        rng = np.random.default_rng([item % 20, length, int(penalty)])
        return [f"red{item % 20} pen {number}" for number in rng.integers(0, 40, 10)]

    ids, recorder, _ = assign(texts_of, 300, tokenizer)
    assert ids == one_after_the_other(texts_of, 300, tokenizer, ALL_STAGES)
    assert len({tokens for _, tokens in ids}) == 300
    assert len(recorder.calls) <= 8
    assert recorder.calls[0] == [(item, 1, 1.0) for item in range(300)]


def test_random_candidates_give_the_sequential_result(tokenizer):
    odd = ["", "!?", "pen, pen", "pen  pen", "z" * 40]
    failures = 0
    for seed in range(30):
        num_items, pool, per_stage = (
            int(np.random.default_rng([seed, high]).integers(2, high)) for high in (60, 90, 6)
        )

        def texts_of(item, length, penalty, seed=seed, pool=pool, per_stage=per_stage):
            rows = np.random.default_rng([seed, item, length, int(penalty)])
            numbers = rows.integers(0, min(pool, 3 + 4 * penalty * length), per_stage)
            return [odd[number] if number < len(odd) else f"lamp {number}" for number in numbers]

        expected = one_after_the_other(texts_of, num_items, tokenizer, ALL_STAGES)
        if None in expected:
            failures += 1
            with pytest.raises(InputError, match=rf"for {expected.count(None)} of {num_items} items"):
                assign(texts_of, num_items, tokenizer)
        else:
            assert assign(texts_of, num_items, tokenizer)[0] == expected
    assert 3 < failures < 27


def test_chain_in_which_each_item_pushes_the_next_to_its_second_stage(tokenizer):
    # Item 1 wants what item 0 has; its second choice is what item 2 wants, and so on to the end.
    def texts_of(item, length, penalty):
        stage = ALL_STAGES.index((length, penalty))
        first = 0 if item <= 1 else item - 1
        return [f"pen {first}" if stage == 0 else f"pen {item + stage - 1}"]

    ids, recorder, assigned = assign(texts_of, 25, tokenizer)
    assert ids == one_after_the_other(texts_of, 25, tokenizer, ALL_STAGES)
    assert [choice.stage for choice in assigned] == [0] + [1] * 24
    assert max(len(asked) for asked in recorder.calls[1:]) <= 2


def test_marked_items_of_different_stages_share_a_call(tokenizer):
    # Item 1 needs three stages; item 3 finds its first choice taken only once item 2 was pushed to its second stage.
    table = {
        (0, 0): ["red"], (1, 0): ["red"], (1, 1): ["red"], (1, 2): ["blue"],
        (2, 0): ["red"], (2, 1): ["green"], (3, 0): ["green"], (3, 1): ["ink"],
    }  # fmt: skip

    def texts_of(item, length, penalty):
        return table.get((item, ALL_STAGES.index((length, penalty))), [])

    ids, recorder, _ = assign(texts_of, 4, tokenizer)
    assert [text for text, _ in ids] == ["red", "blue", "green", "ink"]
    assert recorder.calls[1:] == [[(1, 1, 2.0), (2, 1, 2.0)], [(1, 1, 3.0), (3, 1, 2.0)]]


def test_a_provisional_choice_is_given_back(tokenizer):
    # Item 1 needs its second stage, which is what item 2 took meanwhile; item 3 then loses nothing.
    table = {(0, 0): ["red"], (1, 0): ["red"], (1, 1): ["blue"], (2, 0): ["blue", "green"], (3, 0): ["green", "ink"]}

    def texts_of(item, length, penalty):
        return table.get((item, ALL_STAGES.index((length, penalty))), [])

    ids, _, _ = assign(texts_of, 4, tokenizer)
    assert [text for text, _ in ids] == ["red", "blue", "green", "ink"]


def test_an_item_without_any_candidate_left_in_a_provisional_walk_is_no_failure(tokenizer):
    # In the first walk item 2 finds "blue" taken by item 1 only because item 0 took nothing yet.
    table = {(0, 0): [""], (0, 1): ["red"], (1, 0): ["blue"], (2, 0): ["blue"], (2, 1): ["red"], (2, 2): ["ink"]}

    def texts_of(item, length, penalty):
        return table.get((item, ALL_STAGES.index((length, penalty))), [])

    ids, _, _ = assign(texts_of, 3, tokenizer)
    assert [text for text, _ in ids] == ["red", "blue", "ink"]
    table[2, 1] = ["red", "lamp"]
    assert [text for text, _ in assign(texts_of, 3, tokenizer)[0]] == ["red", "blue", "lamp"]


def test_stages_go_through_penalties_then_lengths(tokenizer):
    def texts_of(item, length, penalty):
        return ["pen"] if item == 0 or (length, penalty) != (21, 2.0) else ["lamp"]

    _, recorder, assigned = assign(texts_of, 2, tokenizer)
    assert [call[-1][1:] for call in recorder.calls] == ALL_STAGES[: ALL_STAGES.index((21, 2.0)) + 1]
    assert assigned[1].stage == 19


def test_uniqueness_is_that_of_tokens(tokenizer):
    # Two unknown characters have one token; as strings they differ.
    assert tokenizer.encode("\u4e00") == tokenizer.encode("\u4e8c")
    ids, _, _ = assign(lambda item, *_: ["\u4e00", "pen"] if item == 0 else ["\u4e8c", "ink"], 2, tokenizer)
    assert [text for text, _ in ids] == ["\u4e00", "ink"]


def test_error_names_up_to_five_items_and_the_count(tokenizer):
    with pytest.raises(InputError) as error:
        assign(lambda item, *_: ["pen", "ink"], 9, tokenizer, penalties=(1.0,), min_lengths=(1, 11))
    message = str(error.value)
    assert "7 of 9 items after 2 stages: 'item2', 'item3', 'item4', 'item5', 'item6', ...;" in message
    assert "--config.ids.fallback=suffix" in message
    assert "\n" not in message


@pytest.mark.parametrize(("penalties", "level"), [((1.0,), logging.INFO), ((1.0, 2.0), logging.WARNING)])
def test_fallback_numbers_the_first_valid_candidate_or_the_given_text(tokenizer, caplog, penalties, level):
    def texts_of(item, *_):
        return ["!", "pen"] if item < 4 else [""] if item < 6 else ["pen 2"]

    with caplog.at_level(logging.INFO):
        ids, _, assigned = assign(
            texts_of, 7, tokenizer, penalties=penalties, min_lengths=(1,), fallback_texts=["lamp"] * 7
        )
    assert [text for text, _ in ids] == ["pen", "pen 3", "pen 4", "pen 5", "lamp", "lamp 2", "pen 2"]
    assert [choice.stage for choice in assigned] == [0, -1, -1, -1, -1, -1, 0]
    (record,) = caplog.records
    # One stage alone is a choice, not a failure.
    assert "5 of 7 items" in record.getMessage() and record.levelno == level
    assert all(list(tokens) == tokenizer.encode(text) for text, tokens in ids)


def test_candidates_that_say_the_same_once_cleaned_are_one(tokenizer):
    table = {(0, 0): ["red pen Red"], (1, 0): ["red pen red pen", "pen red pen"], (2, 0): ["pen pen"]}

    def texts_of(item, length, penalty):
        return table.get((item, ALL_STAGES.index((length, penalty))), [])

    ids, _, _ = assign(texts_of, 3, tokenizer, clean=without_repeats)
    assert [text for text, _ in ids] == ["red pen", "pen red", "pen"]


def test_empty_catalogue(tokenizer):
    assert assign(lambda *_: [], 0, tokenizer)[0] == []
