"""Both layouts of the trie against a dictionary of prefixes, at every node, and the errors of its constructor."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from idgenrec_jax.decoding.trie import WIDTHS, build_trie
from idgenrec_jax.errors import InputError

EOS = 1


def random_sequences(rng, count, max_length, vocab_size):
    """Different sequences, a third of them prefixes of another."""
    found = {}
    while len(found) < count:
        sequence = tuple(rng.integers(2, vocab_size, rng.integers(1, max_length + 1)).tolist())
        if rng.random() < 0.33:
            found[sequence[: rng.integers(1, len(sequence) + 1)]] = None
        found[sequence] = None
    return list(found)[:count]


def dictionary_edges(sequences):
    """{prefix: {token: next prefix, or item after EOS}}, the plain trie."""
    edges = {}
    for item, sequence in enumerate(sequences):
        for length, token in enumerate(sequence):
            edges.setdefault(sequence[:length], {})[token] = sequence[: length + 1]
        edges.setdefault(sequence, {})[EOS] = item
    return edges


def next_states(trie, states, tokens):
    """The state that each token leads to, -1 where it is not allowed; the columns of `trie` are the tokens."""
    edges = trie.edges(states, tokens)
    return jnp.where(edges < 0, -1, trie.edge_states[jnp.maximum(edges, 0)])


def check_against_dictionary(sequences, vocab_size, tries):
    """Numbers the dictionary's prefixes breadth first and compares every node's allowed tokens and next states."""
    edges = dictionary_edges(sequences)
    prefixes = sorted(edges, key=lambda prefix: (len(prefix), prefix))
    node_of = {prefix: node for node, prefix in enumerate(prefixes)}
    num_nodes = len(prefixes)
    expected = sorted(
        (node_of[prefix], token, num_nodes + target if token == EOS else node_of[target])
        for prefix, children in edges.items()
        for token, target in children.items()
    )
    parents, tokens, targets = np.array(expected).T
    for trie in tries:
        assert (trie.num_nodes, trie.num_items) == (num_nodes, len(sequences))
        assert trie.depth == max(map(len, sequences)) + 1
        jitted = jax.jit(next_states)
        np.testing.assert_array_equal(np.asarray(jitted(trie, jnp.asarray(parents), jnp.asarray(tokens))), targets)
        allowed_columns = jax.jit(lambda trie, states: trie.allowed_columns(states))
        states = np.arange(num_nodes + len(sequences))
        for chunk in np.array_split(states, -(-len(states) // 20_000)):
            nodes, allowed = np.nonzero(np.asarray(allowed_columns(trie, jnp.asarray(chunk))))
            inside = (parents >= chunk[0]) & (parents <= chunk[-1])
            np.testing.assert_array_equal(chunk[nodes], parents[inside])
            np.testing.assert_array_equal(allowed, tokens[inside])
        # Every token that is not allowed leads nowhere: one random token per state, wrong or right.
        guesses = np.random.default_rng(0).integers(0, vocab_size, len(states))
        lookup = {(parent, token): target for parent, token, target in expected}
        found = np.asarray(jitted(trie, jnp.asarray(states), jnp.asarray(guesses)))
        pairs = zip(states.tolist(), guesses.tolist(), strict=True)
        np.testing.assert_array_equal(found, [lookup.get(pair, -1) for pair in pairs])


@pytest.mark.parametrize(
    ("count", "max_length", "vocab_size"),
    [
        (1, 1, 3),
        (1, 30, 9),
        (40, 3, 33),
        (300, 6, 5),
        (2000, 8, 700),
        pytest.param(50_000, 30, 97, marks=pytest.mark.slow),
    ],
)
def test_layouts_equal_a_dictionary_at_every_node(count, max_length, vocab_size):
    rng = np.random.default_rng(count)
    sequences = random_sequences(rng, count, max_length, vocab_size)
    tries = [build_trie(sequences, vocab_size=vocab_size, eos_token_id=EOS, layout=name) for name in ("csr", "dense")]
    assert [trie.layout for trie in tries] == ["csr", "dense"]
    check_against_dictionary(sequences, vocab_size, tries)


@pytest.mark.parametrize("eos_token_id", [1, 19])
def test_children_are_contiguous_and_the_last_width_holds_the_largest_family(eos_token_id):
    sequences = [(5, 6), (5,), (7, 8, 9), (5, 2), (3,), *((10, token) for token in range(2, 19))]
    trie = build_trie(sequences, vocab_size=20, eos_token_id=eos_token_id)
    assert trie.widths == WIDTHS[:2]
    # Only node 4 (token 10) has more than eight children.
    assert trie.num_children(jnp.array([0, 4])).tolist() == [4, 17]
    edges, is_child = (np.asarray(array)[0] for array in trie.child_edges(jnp.array([0]), 8))
    assert np.asarray(trie.edge_tokens)[edges[is_child]].tolist() == [3, 5, 7, 10]
    assert np.asarray(trie.edge_states)[edges[is_child]].tolist() == [1, 2, 3, 4]
    assert (np.asarray(trie.child_edges(jnp.array([4]), trie.widths[1])[1]).sum()) == 17
    # The last step of item i leads to state num_nodes + i.
    for item, sequence in enumerate(sequences):
        state = jnp.array([0])
        for token in (*sequence, eos_token_id):
            state = next_states(trie, state, jnp.array([token]))
        assert int(state[0]) == trie.num_nodes + item
        assert not np.asarray(trie.allowed_columns(state)).any()


def pruned(edges, num_items):
    """The dictionary that ends at each item's last choice, as {prefix: {token: next prefix, or item}}."""
    items_below = {}
    for prefix in sorted(edges, key=len, reverse=True):
        items_below[prefix] = [
            item
            for target in edges[prefix].values()
            for item in ([target] if isinstance(target, int) else items_below[target])
        ]
    return {
        prefix: {
            token: target if isinstance(target, int) or len(items_below[target]) > 1 else items_below[target][0]
            for token, target in children.items()
        }
        for prefix, children in edges.items()
        if len(items_below[prefix]) > 1 or not prefix
    }


@pytest.mark.parametrize(("count", "vocab_size"), [(1, 9), (40, 33), (2000, 700)])
def test_over_the_catalogue_layouts_equal_a_dictionary_that_ends_at_last_choices(count, vocab_size):
    sequences = random_sequences(np.random.default_rng(count), count, 6, vocab_size)
    edges = pruned(dictionary_edges(sequences), count)
    # Breadth first.
    node_of = {prefix: node for node, prefix in enumerate(sorted(edges, key=lambda prefix: (len(prefix), prefix)))}
    choice_tokens = sorted({token for children in edges.values() if len(children) > 1 for token in children})
    for layout in ("csr", "dense"):
        trie = build_trie(
            sequences, vocab_size=vocab_size, eos_token_id=EOS, layout=layout, over_catalogue=True
        )
        assert (trie.layout, trie.num_nodes, trie.num_items) == (layout, len(edges), count)
        assert trie.depth == max(len(prefix) + 1 for prefix in edges)
        assert trie.num_columns == trie.tokens.shape[0] == -(-max(1, len(choice_tokens)) // 256) * 256
        np.testing.assert_array_equal(trie.tokens[: len(choice_tokens)], choice_tokens)
        states = np.arange(trie.num_nodes + count)
        allowed = np.asarray(jax.jit(lambda trie, states: trie.allowed_columns(states))(trie, states))
        assert not allowed[trie.num_nodes :].any()
        nodes, columns = np.nonzero(allowed)
        expected = [
            # The only edge of a node stands in column 0, whatever its token.
            (node_of[prefix], choice_tokens.index(token) if len(children) > 1 else 0, token, target)
            for prefix, children in sorted(edges.items(), key=lambda entry: node_of[entry[0]])
            for token, target in sorted(children.items())
        ]
        # All that are allowed, then some that are not.
        others = np.array(np.nonzero(~allowed))[:, :: 1 + allowed.size // 4096]
        pairs = np.concatenate([[nodes, columns], others], axis=1)
        found = np.asarray(jax.jit(lambda trie, pairs: trie.edges(*pairs))(trie, jnp.asarray(pairs)))
        assert (found[len(expected) :] == -1).all()
        found = found[: len(expected)]
        np.testing.assert_array_equal(found, np.arange(len(expected)))
        tokens, targets = np.asarray(trie.edge_tokens)[found], np.asarray(trie.edge_states)[found]
        state_of = [target + trie.num_nodes if isinstance(target, int) else node_of[target] for *_, target in expected]
        assert list(zip(nodes, columns, tokens, targets, strict=True)) == [
            (node, column, token, state) for (node, column, token, _), state in zip(expected, state_of, strict=True)
        ]


def test_nbytes_is_what_the_arrays_hold_and_a_mask_has_a_row_for_each_choice():
    sequences = random_sequences(np.random.default_rng(4), 3000, 6, 500)
    auto, csr, dense = (
        build_trie(sequences, vocab_size=32_128, eos_token_id=EOS, layout=name) for name in ("auto", "csr", "dense")
    )
    for trie in (auto, dense):
        assert trie.nbytes == sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(trie))
    assert auto.layout == "csr" and auto.nbytes == csr.nbytes
    choices = sum(len(children) > 1 for children in dictionary_edges(sequences).values())
    assert choices * 32_128 / 8 < dense.mask.nbytes < (choices + 257) * 32_128 / 8
    # Rounding sizes up costs at most a sixteenth, apart from the fixed part.
    num_edges = csr.num_nodes - 1 + csr.num_items
    assert csr.nbytes <= (4 * csr.num_nodes + 8 * num_edges) * 17 / 16 + 2048


def test_over_the_catalogue_auto_is_dense_up_to_its_limit():
    sequences = random_sequences(np.random.default_rng(4), 3000, 6, 500)
    dense = build_trie(sequences, vocab_size=32_128, eos_token_id=EOS, over_catalogue=True)
    assert dense.layout == "dense" and dense.mask.shape[1] == 512 / 32
    limits = [dense.mask.nbytes, dense.mask.nbytes - 1]
    layouts = [
        build_trie(
            sequences, vocab_size=32_128, eos_token_id=EOS, over_catalogue=True, auto_limit_bytes=limit
        ).layout
        for limit in limits
    ]
    assert layouts == ["dense", "csr"]


def test_is_a_pytree_whose_leaves_may_be_anything():
    trie = build_trie([(2, 3), (4,)], vocab_size=8, eos_token_id=EOS)
    kinds = jax.tree.map(lambda leaf: str(leaf.dtype), trie)
    assert kinds.edge_states == "int32" and kinds.layout == "csr"
    moved = jax.device_put(trie, jax.devices()[0])
    assert moved.num_items == 2 and moved.depth == 3


def test_similar_catalogues_share_a_compiled_program():
    traces = []

    @jax.jit
    def first_tokens(trie):
        traces.append(trie.layout)
        return trie.allowed_columns(jnp.zeros(1, jnp.int32))

    rng = np.random.default_rng(0)
    for count in (10, 20, 30):
        trie = build_trie(random_sequences(rng, count, 3, 50), vocab_size=50, eos_token_id=EOS, layout="dense")
        assert np.asarray(first_tokens(trie)).any()
    assert traces == ["dense"]


@pytest.mark.parametrize(
    ("sequences", "message"),
    [
        ([], "no sequences"),
        ([(2,), ()], "item 1 is empty"),
        ([(2, 3), (4,), (2, 3)], r"items 0 and 2 have the same sequence \[2, 3\]"),
        ([(2,), (3, 8)], "item 1 holds token 8, expected tokens from 0 to 7"),
        ([(2,), (3,), (-1,)], "item 2 holds token -1"),
        ([(2, 1, 3)], r"item 0 holds token 1, .* EOS \(1\)"),
        ([(2,), (0, 2)], r"item 1 holds token 0, .* padding \(0\)"),
    ],
)
def test_mistakes_are_named(sequences, message):
    with pytest.raises(InputError, match=message):
        build_trie(sequences, vocab_size=8, eos_token_id=EOS, pad_token_id=0)


def test_token_0_is_a_token_like_others_where_padding_is_another():
    trie = build_trie([(0, 2), (3,)], vocab_size=8, eos_token_id=EOS, pad_token_id=5)
    assert trie.allowed_columns(jnp.array([0]))[0].tolist() == [True, False, False, True, *[False] * 4]
    with pytest.raises(InputError, match=r"item 0 holds token 5, .* padding \(5\)"):
        build_trie([(5,)], vocab_size=8, eos_token_id=EOS, pad_token_id=5)


def test_a_dense_mask_over_the_limit_and_an_unknown_layout_are_refused():
    sequences = [(2, 3), (4,)]
    with pytest.raises(InputError, match="expected at most 1000; use layout csr"):
        build_trie(sequences, vocab_size=8, eos_token_id=EOS, layout="dense", dense_limit_bytes=1000)
    with pytest.raises(InputError, match="found 'sparse', expected one of auto, dense, csr"):
        build_trie(sequences, vocab_size=8, eos_token_id=EOS, layout="sparse")
