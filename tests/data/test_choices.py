"""The choices of a catalogue against those that Python dictionaries find."""

import numpy as np
import pytest

from idgenrec_jax.data.choices import NARROW_CHILDREN, find_choices, place_choices
from idgenrec_jax.errors import InputError
from tests.data.test_prefix_tree import CASES, EOS, children_of, random_sequences

# What stands around an ID under each target text; the tokens occur in IDs, too.
TEXTS = [((), ()), ((41, 5), ()), ((), (0,)), ((6,), (97, 97))]


def targets_of(ids, texts):
    return [[[*prefix, *item, *suffix] for item in ids] for prefix, suffix in texts]


def ways_of(targets):
    """For each way its (position, choice, token), choices numbered breadth first, and the tokens of each choice."""
    choices, ways = {}, []
    for kind, of_kind in enumerate(targets):
        children = children_of(of_kind)
        for prefix, following in children.items():
            if len(following) > 1:
                choices[kind, prefix] = sorted(following)
        for target in of_kind:
            whole = [*target, EOS]
            places = [place for place in range(len(whole)) if (kind, tuple(whole[:place])) in choices]
            ways.append([(place, (kind, tuple(whole[:place])), whole[place]) for place in places])
    numbers = {choice: number for number, choice in enumerate(choices)}
    return [[(place, numbers[choice], token) for place, choice, token in way] for way in ways], list(choices.values())


@pytest.mark.parametrize(("num_texts", "limits"), [(1, {}), (3, {}), (4, {"mask_limit_bytes": 0})])
@pytest.mark.parametrize(("count", "seed"), CASES)
def test_choices_are_the_prefixes_with_several_tokens_behind_them(count, seed, num_texts, limits):
    targets = targets_of(random_sequences(count, seed), TEXTS[:num_texts])
    found = find_choices(targets, eos_token_id=EOS, **limits)
    ways, tokens = ways_of(targets)
    is_narrow = [bool(limits) and len(of_choice) <= NARROW_CHILDREN for of_choice in tokens]
    assert (found.num_items, found.num_choices) == (count, len(tokens))
    assert found.tokens.tolist() == sorted({token for of_choice in tokens for token in of_choice})
    of_choices = np.split(found.tokens[found.children], found.offsets[1:-1])
    assert [of_choice.tolist() for of_choice in of_choices[: len(tokens)]] == tokens
    for narrow in (False, True):
        counts = [sum(is_narrow[choice] == narrow for _, choice, _ in way) for way in ways]
        assert found.counts(narrow=narrow).tolist() == counts
    assert found.lengths().tolist() == [way[-1][0] + 1 if way else 1 for way in ways]
    for number, way in enumerate(ways):
        read = [(*step[:2], int(found.tokens[step[2]]), step[3]) for step in found.way(number)]
        assert read == [(*step, is_narrow[step[1]]) for step in way]
    bits = np.unpackbits(found.mask().view(np.uint8), axis=1, bitorder="little").astype(bool)
    wide = [of_choice for of_choice, narrow in zip(tokens, is_narrow, strict=True) if not narrow]
    assert [found.tokens[row[: len(found.tokens)]].tolist() for row in bits] == wide
    assert not bits[:, len(found.tokens) :].any()


def test_one_item_leaves_no_choice():
    found = find_choices([[[7, 8, 9]]], eos_token_id=EOS)
    assert found.num_choices == len(found.tokens) == 0
    assert found.way(0) == [] and found.lengths().tolist() == [1]
    assert found.mask().shape == (0, 0)


def test_two_items_with_the_same_id_are_an_input_error():
    with pytest.raises(InputError, match=r"items 0 and 2 have the same sequence \[7\]"):
        find_choices([[[7], [8], [7]]], eos_token_id=EOS)


@pytest.mark.parametrize(("ids", "found"), [([], "found no sequences"), ([[7], []], "item 1 is empty")])
def test_no_item_or_an_empty_id_is_an_input_error(ids, found):
    with pytest.raises(InputError, match=found):
        find_choices([ids], eos_token_id=EOS)


def test_choices_of_several_targets_stand_one_after_the_other():
    """IDs 7 8, 7 9, and 6; of the second target, whose row has a target of two tokens before it, both are choices."""
    found = find_choices([[[7, 8], [7, 9], [6]]], eos_token_id=EOS)
    placed = place_choices(found, [[(2, 0), (2, 1), (1, 2)], [], [(1, 2)]], 4, (6, 0))
    assert placed.narrow is None
    assert placed.positions.tolist() == [[0, 1, 2, 3, 4, 0], [0] * 6, [0] * 6, [0] * 6]
    assert placed.nodes.tolist() == [[0, 1, 0, 1, 0, -1], [-1] * 6, [0, *[-1] * 5], [-1] * 6]
    tokens = found.tokens[placed.tokens[0, :5]]
    assert tokens.tolist() == [7, 8, 7, 9, 6] and found.tokens[placed.tokens[2, 0]] == 6


def test_narrow_choices_stand_apart():
    """Forty IDs of two tokens, of whose first tokens one is in nine IDs: the first choice is wide, that one narrow."""
    ids = [[50 + max(0, item - 8), 7 + item] for item in range(40)]
    found = find_choices([ids], eos_token_id=EOS, mask_limit_bytes=0)
    assert found.is_narrow.tolist() == [len(set(token for token, _ in ids)) <= NARROW_CHILDREN, True]
    ids += [[200 + item] for item in range(NARROW_CHILDREN)]
    found = find_choices([ids], eos_token_id=EOS, mask_limit_bytes=0)
    assert found.is_narrow.tolist() == [False, True] and len(found.mask()) == 1
    placed = place_choices(found, [[(1, 30), (2, 4)], [(2, 5)]], 2, (3, 2))
    assert placed.positions.tolist() == [[0, 1, 0], [0, 0, 0]] and placed.nodes.tolist() == [[0, 0, -1], [0, -1, -1]]
    assert placed.narrow.positions.tolist() == [[2, 0], [1, 0]] and placed.narrow.nodes.tolist() == [[1, -1], [1, -1]]
    assert found.tokens[placed.narrow.tokens[:, 0]].tolist() == [7 + 4, 7 + 5]
