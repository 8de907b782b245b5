"""The prefix tree against one of Python dictionaries, on random sequences of which some begin others."""

import numpy as np
import pytest

from idgenrec_jax.data.prefix_tree import prefix_tree
from idgenrec_jax.errors import InputError

EOS = 3


def random_sequences(count, seed):
    """Different sequences of one to six of few tokens, so that many share beginnings and many begin others."""
    rng = np.random.default_rng(seed)
    # Below and above EOS.
    alphabet = np.asarray([0, 1, 2, 5, 6, 40, 41, 97])[: 2 + seed % 7]
    found = {}
    while len(found) < count:
        alphabet = np.arange(100, 200) if len(found) > 200 else alphabet
        found[tuple(rng.choice(alphabet, rng.integers(1, 7)).tolist())] = None
    return [list(sequence) for sequence in rng.permutation(np.asarray(list(found), object))]


def children_of(sequences):
    """The tokens that follow each prefix, nodes breadth first: {prefix: {token: prefix or number of a sequence}}."""
    found = {(): {}}
    for number, sequence in enumerate(sequences):
        for length, token in enumerate(sequence):
            found.setdefault(tuple(sequence[:length]), {})[token] = tuple(sequence[: length + 1])
        found.setdefault(tuple(sequence), {})[EOS] = number
    return {prefix: found[prefix] for prefix in sorted(found, key=lambda prefix: (len(prefix), prefix))}


def without_forced_ends(children):
    """Those of `children_of`, where each sequence ends at the last prefix with several tokens behind it."""

    def has_choice(prefix):
        following = children[prefix].values()
        return len(following) > 1 or any(isinstance(other, tuple) and has_choice(other) for other in following)

    def end(prefix):
        (state,) = children[prefix].values()
        return end(state) if isinstance(state, tuple) else state

    return {
        prefix: {
            token: state if isinstance(state, int) or has_choice(state) else end(state)
            for token, state in following.items()
        }
        for prefix, following in children.items()
        if prefix == () or has_choice(prefix)
    }


CASES = [(1, 0), (1, 4), (2, 1), (3, 2), (7, 3), (40, 4), (40, 5), (300, 6), (2000, 5)]


@pytest.mark.parametrize("prune", [False, True])
@pytest.mark.parametrize(("count", "seed"), CASES)
def test_the_tree_is_that_of_dictionaries(count, seed, prune):
    sequences = random_sequences(count, seed)
    tree = prefix_tree(sequences, vocab_size=200, eos_token_id=EOS, prune=prune)
    expected = children_of(sequences)
    if prune:
        expected = without_forced_ends(expected)
    number = {prefix: place for place, prefix in enumerate(expected)}
    assert tree.num_nodes == len(expected) and tree.num_sequences == count
    edges = [
        (number[prefix], token, number[state] if isinstance(state, tuple) else len(expected) + state)
        for prefix, following in expected.items()
        for token, state in sorted(following.items())
    ]
    assert list(zip(tree.parents.tolist(), tree.tokens.tolist(), tree.states.tolist(), strict=True)) == edges
    assert tree.num_children.tolist() == [len(following) for following in expected.values()]
    lengths = list(map(len, expected))
    assert tree.depths().tolist() == lengths
    assert tree.depth == max(lengths) + 1
    ends = [lengths.index(length) for length in range(1, max(lengths) + 1)] + [len(lengths)]
    assert tree.levels() == list(zip([0, *ends[:-1]], ends, strict=True))
    assert {array.dtype for array in tree[:4]} == {np.dtype(np.int32)}


def test_cases_have_sequences_that_begin_others_and_ends_that_are_forced():
    for count, seed in CASES[5:]:
        sequences = random_sequences(count, seed)
        children = children_of(sequences)
        assert any(len(following) > 1 and EOS in following for following in children.values())
        assert len(without_forced_ends(children)) < len(children)


@pytest.mark.parametrize(
    ("sequences", "fault"),
    [
        ([], "found no sequences"),
        ([[5], []], "the sequence of item 1 is empty"),
        ([[5], [6], [7, 100]], "the sequence of item 2 holds token 100, expected tokens from 0 to 99 other than EOS"),
        ([[5], [6, EOS]], r"the sequence of item 1 holds token 3, expected .* other than EOS \(3\) and padding \(0\)"),
        ([[0, 5]], "the sequence of item 0 holds token 0"),
        ([[7, 8], [5], [7], [7, 8]], r"items 0 and 3 have the same sequence \[7, 8\]"),
    ],
)
@pytest.mark.parametrize("prune", [False, True])
def test_what_is_no_catalogue_is_an_input_error(sequences, fault, prune):
    with pytest.raises(InputError, match=f"^trie: {fault}"):
        prefix_tree(sequences, vocab_size=100, eos_token_id=EOS, pad_token_id=0, prune=prune)
