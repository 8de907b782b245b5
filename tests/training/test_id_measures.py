"""What is told of an ID phase: losses of the same examples under old, soft and new IDs, and how much changed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from idgenrec_jax.data.id_batches import IdBatches, id_shape
from idgenrec_jax.models.t5 import T5
from idgenrec_jax.training.choice_softmax import choice_table
from idgenrec_jax.training.id_measures import IdMeasures, changed, longest_id
from tests.training.test_acceptance import loss_of_spelled
from tests.training.test_catalogue_loss import GRAPHDEF, ITEM_IDS, MODEL, NUM_ITEMS, PARAMS, VOCABULARY, make_renderer

TEXTS = [[100 + 3 * item, 101 + item, 1] for item in range(NUM_ITEMS)]
# IDs that the recommender was not given, two of them longer than any other.
NEW_IDS = (*ITEM_IDS[:5], (90, 91, 92, 93, 94, 95), (96,), *ITEM_IDS[7:-1], (97, 98))
SOFT_LENGTH = 4


@pytest.mark.parametrize("is_causal", [True, False])
def test_the_losses_are_those_of_each_example_spelled_in_one_kind_of_id(is_causal):
    renderer = make_renderer(is_causal)
    length = longest_id(ITEM_IDS, NEW_IDS)
    assert length == 7
    shared = {"seed": 0, "id_length": length}
    shape = id_shape(renderer, TEXTS, batch_size=6, items_per_batch=8, **shared)
    batches = IdBatches(renderer, TEXTS, epoch=3, num_examples=15, shape=shape, **shared)
    id_generator, generator_params = nnx.split(T5(MODEL, rngs=nnx.Rngs(1)), nnx.Param)
    measures = IdMeasures(
        id_generator, GRAPHDEF, jnp.zeros(VOCABULARY, bool), soft_length=SOFT_LENGTH,
        place_batch=jax.device_put, read=jax.device_get,
    )  # fmt: skip
    choices = jax.tree.map(jnp.asarray, choice_table(renderer.choices))
    found = measures.losses(generator_params, PARAMS, batches, choices, ITEM_IDS, NEW_IDS)

    examples = [example for step in range(len(batches)) for example in batches.examples(step)]
    assert len(examples) == 15
    for kind, ids in (("old_ids", ITEM_IDS), ("new_ids", NEW_IDS)):
        losses = []
        for user, position, template in examples:
            spelled = [ids[item] for item in renderer.dataset.sequences[user][:position].tolist()]
            losses.append(loss_of_spelled(renderer, user, position, spelled, template))
        np.testing.assert_allclose(getattr(found, kind), np.mean(losses), rtol=1e-4)
    assert abs(found.old_ids - found.new_ids) > 1e-4 and np.isfinite(found.soft_ids)
    same = measures.losses(generator_params, PARAMS, batches, choices, ITEM_IDS, ITEM_IDS)
    assert same.old_ids == same.new_ids and same.soft_ids == pytest.approx(found.soft_ids, rel=1e-6)


def test_changes_are_counted_by_id_and_by_token():
    old = ((1, 2, 3), (4,), (5, 6), (7,))
    new = ((1, 9, 3), (4,), (5,), (8, 7))
    assert changed(old, new) == {"ids_changed": 3, "tokens_changed": 1 + 1 + 2}
    assert changed(old, old) == {"ids_changed": 0, "tokens_changed": 0}
