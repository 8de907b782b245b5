"""What the ID loss may have beside the published one: temperature, straight-through, leash, neighbours."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from idgenrec_jax.training.id_loss import generate_soft_ids, id_loss, loss_of_soft_ids
from idgenrec_jax.training.id_terms import IdTerms, divergences
from idgenrec_jax.training.soft_ids import tokens_without_embedding
from tests.training.test_id_loss import (
    EOS,
    ID_LENGTH,
    ITEM_TEXTS,
    PACKED_BATCH,
    PAD,
    VOCABULARY,
    assert_same_gradients,
    make_id_generator,
    make_model,
    params_of,
)

GENERATOR, RECOMMENDER = make_id_generator(True), make_model(3)
NO_EMBEDDING = jnp.asarray(tokens_without_embedding([7], VOCABULARY))
BATCH = PACKED_BATCH._replace(neighbour_tokens=jnp.asarray([[12, -1, -1, -1], [30, -1, 31, -1], [-1, -1, -1, -1]]))


def loss_of(generator, *, reference=None, **options):
    """The ID loss and its gradient in the ID generator's parameters."""
    graphdef, params = nnx.split(generator, nnx.Param)

    def loss(params):
        model = nnx.merge(graphdef, params)
        return id_loss(model, RECOMMENDER, BATCH, NO_EMBEDDING, id_length=ID_LENGTH, reference=reference, **options)

    return jax.jit(jax.value_and_grad(loss))(params)


def other_generator():
    """The ID generator a little moved: it writes the same IDs with other probabilities."""
    graphdef, params = nnx.split(make_id_generator(True), nnx.Param)
    keys = iter(jax.random.split(jax.random.key(0), 100))
    moved = jax.tree.map(lambda leaf: leaf + 1e-3 * jax.random.normal(next(keys), leaf.shape), params)
    return nnx.merge(graphdef, moved)


PUBLISHED_LOSS, PUBLISHED_GRADIENTS = loss_of(GENERATOR)


def soft_ids(**options):
    return generate_soft_ids(
        GENERATOR, RECOMMENDER.shared.table[...], BATCH.item_tokens, BATCH.item_segments, BATCH.item_places,
        NO_EMBEDDING, id_length=ID_LENGTH, **options,
    )  # fmt: skip


def real_places():
    return np.flatnonzero(np.asarray(BATCH.item_places).reshape(-1))


def test_temperature_one_is_the_published_loss_and_a_low_one_reads_the_likeliest_words():
    loss, gradients = loss_of(GENERATOR, temperature=jnp.float32(1.0))
    np.testing.assert_allclose(loss, PUBLISHED_LOSS, rtol=1e-6)
    assert_same_gradients(gradients, PUBLISHED_GRADIENTS)
    cold = soft_ids(temperature=jnp.float32(1e-4))
    rows = RECOMMENDER.shared.table[...][cold.tokens]
    real = real_places()
    np.testing.assert_allclose(cold.embeddings[real], rows[real], atol=1e-4)
    assert np.abs(np.asarray(soft_ids().embeddings - rows)[real]).max() > 0.1


def test_straight_through_reads_the_words_and_learns_from_the_mixture():
    straight = soft_ids(straight_through=True)
    rows = RECOMMENDER.shared.table[...][straight.tokens]
    real = real_places()
    np.testing.assert_allclose(straight.embeddings[real], rows[real], atol=1e-5)
    loss, gradients = loss_of(GENERATOR, terms=IdTerms(straight_through=True))
    np.testing.assert_allclose(loss, loss_of_soft_ids(RECOMMENDER, rows, straight.mask, BATCH), rtol=1e-5)

    # The recommender's gradient at the words, sent through the mixture by hand.
    at_words = jax.jit(jax.grad(lambda rows: loss_of_soft_ids(RECOMMENDER, rows, straight.mask, BATCH)))(rows)
    graphdef, params = nnx.split(GENERATOR, nnx.Param)

    def mixture(params):
        found = generate_soft_ids(
            nnx.merge(graphdef, params), RECOMMENDER.shared.table[...], BATCH.item_tokens, BATCH.item_segments,
            BATCH.item_places, NO_EMBEDDING, id_length=ID_LENGTH,
        )  # fmt: skip
        return (found.embeddings * at_words).sum()

    assert_same_gradients(gradients, jax.jit(jax.grad(mixture))(params))


def dense_log_probabilities(model, text, tokens):
    mask = jnp.ones((1, len(text)), bool)
    hidden = model.decode(jnp.asarray([[PAD, *tokens[:-1]]]), model.encode(jnp.asarray([text]), mask), mask)
    return jax.nn.log_softmax(hidden[0] @ model.output_table.T)


def items_of_places():
    """The item in each real place of the batch, as PACKED_BATCH lays them out."""
    return [3, 2, 0, 1]


def test_a_leash_is_the_mean_divergence_from_the_generator_before_and_nothing_where_it_has_not_moved():
    moved = other_generator()
    still, _ = loss_of(moved, reference=moved, terms=IdTerms(leash=2.0))
    base, base_gradients = loss_of(moved)
    np.testing.assert_allclose(still, base, atol=1e-6)
    held, gradients = loss_of(moved, reference=GENERATOR, terms=IdTerms(leash=2.0))

    tokens = np.asarray(soft_ids().tokens)[real_places()].tolist()

    def divergence(params):
        model = nnx.merge(nnx.graphdef(moved), params)
        total, count = 0.0, 0
        for item, written in zip(items_of_places(), tokens, strict=True):
            before = dense_log_probabilities(GENERATOR, ITEM_TEXTS[item], written)
            now = dense_log_probabilities(model, ITEM_TEXTS[item], written)
            length = written.index(EOS) + 1 if EOS in written else ID_LENGTH
            total += (jnp.exp(before) * (before - now)).sum(axis=-1)[:length].sum()
            count += length
        return 2.0 * total / count

    expected, expected_gradients = jax.jit(jax.value_and_grad(divergence))(params_of(moved))
    assert expected > 1e-7
    np.testing.assert_allclose(held - base, expected, rtol=2e-2, atol=1e-6)
    summed = jax.tree.map(jnp.add, base_gradients, expected_gradients)
    assert_same_gradients(gradients, summed, tolerance=1e-3)


def test_divergences_of_many_tokens_equal_the_dense_ones():
    rng = np.random.default_rng(0)
    held, now = (jnp.asarray(rng.normal(size=(3, 200, 8)), jnp.float32) for _ in range(2))
    tables = [jnp.asarray(rng.normal(size=(50, 8)), jnp.float32) for _ in range(2)]
    before, after = jax.nn.log_softmax(held @ tables[0].T), jax.nn.log_softmax(now @ tables[1].T)
    found = divergences(held, tables[0], now, tables[1])
    np.testing.assert_allclose(found, (jnp.exp(before) * (before - after)).sum(axis=-1), rtol=1e-4, atol=1e-5)


def test_neighbours_raise_the_first_tokens_of_their_ids():
    loss, gradients = loss_of(GENERATOR, terms=IdTerms(neighbour_weight=3.0))

    def first_tokens(params):
        model = nnx.merge(nnx.graphdef(GENERATOR), params)
        # The places with a neighbour hold these items.
        wanted = {3: 12, 2: 30, 0: 31}
        losses = [-dense_log_probabilities(model, ITEM_TEXTS[item], [0, 0])[0, token] for item, token in wanted.items()]
        return 3.0 * sum(losses) / len(losses)

    expected, expected_gradients = jax.jit(jax.value_and_grad(first_tokens))(params_of(GENERATOR))
    np.testing.assert_allclose(loss - PUBLISHED_LOSS, expected, rtol=1e-4)
    assert_same_gradients(gradients, jax.tree.map(jnp.add, PUBLISHED_GRADIENTS, expected_gradients))


def test_terms_that_lack_what_they_need_are_errors():
    with pytest.raises(ValueError, match="leash"):
        loss_of(GENERATOR, terms=IdTerms(leash=1.0))
    batch = PACKED_BATCH
    with pytest.raises(ValueError, match="neighbours"):
        id_loss(
            GENERATOR, RECOMMENDER, batch, NO_EMBEDDING, id_length=ID_LENGTH, terms=IdTerms(neighbour_weight=1.0)
        )
