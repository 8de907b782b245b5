"""The softmax over choices against one item by item over the tokens that Python dictionaries let follow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from idgenrec_jax.data.choices import find_choices, place_choices
from idgenrec_jax.training.choice_softmax import choice_cross_entropy, choice_table
from tests.data.test_choices import TEXTS, targets_of
from tests.data.test_prefix_tree import EOS, children_of, random_sequences

VOCABULARY, WIDTH = 200, 8
cross_entropy = jax.jit(choice_cross_entropy)


def every_way(choices):
    """The choices of all items under all target texts, a target a row."""
    rows = [[(int(length), way)] for way, length in enumerate(choices.lengths())]
    room = [int(choices.counts(narrow=narrow).max(initial=0)) for narrow in (False, True)]
    return jax.tree.map(jnp.asarray, place_choices(choices, rows, len(rows), (room[0], room[1])))


def table_of(choices):
    return jax.tree.map(jnp.asarray, choice_table(choices))


def states_of(choices, rng):
    """Random states of every target, those of the same beginning alike: [ways, positions, width]."""
    of_choice = rng.normal(size=(choices.num_choices, WIDTH))
    states = rng.normal(size=(len(choices.starts) - 1, int(choices.lengths().max()), WIDTH))
    for way in range(len(states)):
        for position, node, *_ in choices.way(way):
            states[way, position] = of_choice[node]
    return jnp.asarray(states, jnp.float32)


@pytest.mark.parametrize(
    ("count", "seed", "limits"),
    [
        (1, 0, {}), (2, 1, {}), (40, 5, {}), (300, 6, {"mask_limit_bytes": 0}), (2000, 5, {}),
        (2000, 5, {"mask_limit_bytes": 0}),
    ],
)  # fmt: skip
def test_the_probabilities_of_all_items_sum_to_one(count, seed, limits):
    choices = find_choices(targets_of(random_sequences(count, seed), TEXTS[:2]), eos_token_id=EOS, **limits)
    rng = np.random.default_rng(seed)
    table = jnp.asarray(rng.normal(size=(VOCABULARY, WIDTH)), jnp.float32)
    losses = cross_entropy(states_of(choices, rng), table, table_of(choices), every_way(choices))
    probabilities = np.exp(-np.asarray(losses, np.float64)).reshape(2, count)
    assert np.isfinite(losses).all() and (probabilities <= 1 + 1e-6).all()
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0, atol=1e-5)
    assert count == 1 or probabilities.std() > 0


def test_values_and_gradients_are_those_of_a_softmax_over_what_may_follow():
    targets = targets_of(random_sequences(60, 5), TEXTS[:3])
    choices, apart = (find_choices(targets, eos_token_id=EOS, **limits) for limits in ({}, {"mask_limit_bytes": 0}))
    assert apart.is_narrow.any() and not choices.is_narrow.any()
    rng = np.random.default_rng(0)
    # No two states are alike here, so that a place is taken for no other.
    hidden = jnp.asarray(rng.normal(size=(180, int(choices.lengths().max()), WIDTH)), jnp.float32)
    table = jnp.asarray(rng.normal(size=(VOCABULARY, WIDTH)), jnp.float32)
    weights = jnp.asarray(rng.normal(size=180), jnp.float32)
    # [ways, positions, vocabulary]: what may follow; behind a target's end one token alone, so that it costs nothing.
    allowed, chosen = np.zeros((*hidden.shape[:2], VOCABULARY), bool), np.full(hidden.shape[:2], EOS)
    allowed[..., EOS] = True
    for kind, of_kind in enumerate(targets):
        following = children_of(of_kind)
        for way, target in enumerate(of_kind, start=60 * kind):
            for position, token in enumerate([*target, EOS][: hidden.shape[1]]):
                chosen[way, position] = token
                allowed[way, position, EOS] = False
                allowed[way, position, list(following[tuple(target[:position])])] = True

    def dense(hidden, table):
        log_probabilities = jax.nn.log_softmax(jnp.where(allowed, hidden @ table.T, -jnp.inf))
        return -jnp.take_along_axis(log_probabilities, chosen[..., None], axis=-1)[..., 0].sum(axis=1)

    def value_and_gradients(loss):
        def weighted(hidden, table):
            losses = loss(hidden, table)
            return (losses * weights).sum(), losses

        (_, losses), gradients = jax.jit(jax.value_and_grad(weighted, (0, 1), has_aux=True))(hidden, table)
        return losses, *gradients

    expected = value_and_gradients(dense)
    for found in (choices, apart):
        read = table_of(found), every_way(found)
        values = value_and_gradients(lambda hidden, table, read=read: choice_cross_entropy(hidden, table, *read))
        for value, reference in zip(values, expected, strict=True):
            np.testing.assert_allclose(value, reference, rtol=1e-5, atol=1e-5)
            assert np.abs(reference).max() > 0.1


def test_tables_of_rounds_with_nearly_as_many_choices_have_one_shape():
    tables = [
        choice_table(find_choices([random_sequences(count, 5)], eos_token_id=EOS)) for count in (280, 300)
    ]
    assert jax.tree.map(np.shape, tables[0]) == jax.tree.map(np.shape, tables[1])
    assert (tables[0].mask != tables[1].mask).any()
