"""Counted operations of the steps against those that XLA counts in the compiled gradients."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from idgenrec_jax.data.choices import TargetChoices
from idgenrec_jax.data.id_batches import IdBatch
from idgenrec_jax.data.packing import SupervisedBatch
from idgenrec_jax.models.create import abstract_model
from idgenrec_jax.models.step_operations import id_step_operations, recommender_step_operations
from idgenrec_jax.models.t5 import T5Config
from idgenrec_jax.training.choice_softmax import ChoiceTable, choice_cross_entropy
from idgenrec_jax.training.id_loss import id_loss
from idgenrec_jax.training.recommender_loss import recommender_loss
from idgenrec_jax.training.steps import compiler_options

# Wide enough for products to be nearly all of the work; XLA also counts softmax, norms, masks and sums.
CONFIG = T5Config(
    vocab_size=512, d_model=96, d_kv=24, d_ff=384, num_layers=2, num_decoder_layers=1, num_heads=4,
    tie_word_embeddings=False,
)  # fmt: skip
TOLERANCE = 0.05
ID_LENGTH = 3
INTEGERS = jax.ShapeDtypeStruct((8, 48), jnp.int32)
TARGETS = jax.ShapeDtypeStruct((8, 16), jnp.int32)
FAST_COMPILATION = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def operations_of_xla(loss, *arguments, rematerialise="none"):
    """Of a loss and its gradient; XLA counts the body of a loop once."""
    options = FAST_COMPILATION | (compiler_options(rematerialise) or {})
    lowered = jax.jit(jax.value_and_grad(loss), compiler_options=options).lower(*arguments)
    return lowered.compile().cost_analysis()["flops"]


@pytest.mark.slow
def test_a_recommender_step_needs_what_xla_counts():
    config = dataclasses.replace(CONFIG, rematerialise="layers")
    graphdef, params = abstract_model(config)
    batch = SupervisedBatch(INTEGERS, INTEGERS, TARGETS, TARGETS)

    def loss(params, batch):
        return recommender_loss(nnx.merge(graphdef, params), batch)

    counted = sum(recommender_step_operations(config, batch).values())
    found = operations_of_xla(loss, params, batch, rematerialise="layers")
    assert found == pytest.approx(counted, rel=TOLERANCE)


def test_over_the_catalogue_logits_are_those_of_choices():
    """Of wide rows and few layers, so that logits are most of the work."""
    columns, rows, places = 2048, 8, 12
    table, positions = jax.ShapeDtypeStruct((4096, 96), jnp.float32), jax.ShapeDtypeStruct((rows, places), jnp.int32)
    numbers = jax.ShapeDtypeStruct((256,), jnp.int32)
    choices = ChoiceTable(
        jax.ShapeDtypeStruct((columns,), jnp.int32), jax.ShapeDtypeStruct((256, columns // 32), jnp.uint32)
    )
    with_lists = choices._replace(rows=numbers, offsets=numbers, children=numbers)
    hidden = jax.ShapeDtypeStruct((*TARGETS.shape, CONFIG.d_model), jnp.float32)
    places = TargetChoices(positions, positions, positions)
    batch = SupervisedBatch(INTEGERS, INTEGERS, TARGETS, TARGETS, places)

    def loss(both, choices, places):
        return choice_cross_entropy(*both, choices, places).sum()

    counted = recommender_step_operations(CONFIG, batch, columns)["output table"]
    found = operations_of_xla(loss, (hidden, table), choices, places)
    # The mask and the softmax are a few operations of each column, where products have 3 x 192.
    assert counted < found < 1.1 * counted
    narrow = jax.ShapeDtypeStruct((rows, 128), jnp.int32)
    places = places._replace(narrow=TargetChoices(narrow, narrow, narrow))
    with_narrow = recommender_step_operations(CONFIG, batch._replace(choices=places), columns)["output table"]
    found = operations_of_xla(loss, (hidden, table), with_lists, places)
    assert with_narrow - counted == 3 * 2 * 96 * rows * 128 * 32
    assert with_narrow < found < 1.1 * with_narrow
    whole = recommender_step_operations(CONFIG, batch)
    assert whole["layers"] == recommender_step_operations(CONFIG, batch, columns)["layers"]
    assert whole["output table"] == counted * (16 * 512) / (12 * 2048)


@pytest.mark.slow
def test_an_id_step_needs_what_xla_counts():
    graphdef, params = abstract_model(CONFIG)
    places = jax.ShapeDtypeStruct((8, 2), jnp.int32)
    batch = IdBatch(
        item_tokens=INTEGERS, item_segments=INTEGERS, item_places=places, prompt_tokens=INTEGERS,
        prompt_segments=INTEGERS, slot_item=INTEGERS, slot_position=INTEGERS, target_tokens=TARGETS,
        target_segments=TARGETS,
    )  # fmt: skip

    def loss(params, recommender, batch):
        models = nnx.merge(graphdef, params), nnx.merge(graphdef, recommender)
        return id_loss(*models, batch, jnp.zeros(CONFIG.vocab_size, bool), id_length=ID_LENGTH)

    counted = id_step_operations(CONFIG, CONFIG, batch, id_length=ID_LENGTH, chunks=1)
    of_one_turn = counted["ID generator, greedy tokens"] / ID_LENGTH
    expected = sum(counted.values()) - (ID_LENGTH - 1) * of_one_turn
    found = operations_of_xla(loss, params, params, batch)
    assert found == pytest.approx(expected, rel=TOLERANCE)


def test_what_is_computed_twice_is_counted_twice():
    batch = SupervisedBatch(INTEGERS, INTEGERS, TARGETS, TARGETS)
    once = recommender_step_operations(CONFIG, batch)
    twice = recommender_step_operations(dataclasses.replace(CONFIG, rematerialise="layers"), batch)
    assert once["output table"] == twice["output table"]
    assert once["layers"] < twice["layers"] < 4 / 3 * once["layers"]
