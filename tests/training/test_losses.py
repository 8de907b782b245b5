"""The table of losses: one line adds one, which a configuration then names and a step trains with."""

import importlib

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from idgenrec_jax.config import CATALOGUE, Config
from idgenrec_jax.data.packing import SupervisedBatch
from idgenrec_jax.errors import InputError
from idgenrec_jax.models.t5 import T5, T5Config
from idgenrec_jax.training.catalogue_loss import catalogue_loss
from idgenrec_jax.training.losses import SUPERVISED_LOSSES, supervised_loss
from idgenrec_jax.training.optimizer import make_optimizer
from idgenrec_jax.training.phases import ID, RECOMMENDER, WARM_START
from idgenrec_jax.training.recommender_loss import recommender_loss
from idgenrec_jax.training.run_steps import make_steps
from idgenrec_jax.training.steps import create_train_state, seed_key

NEW_LOSS = '''
from idgenrec_jax.training.recommender_loss import recommender_loss

def doubled(model, batch, dropout_key=None, *, part=None, whole=None):
    return 2 * recommender_loss(model, batch, dropout_key, part=part, whole=whole)
'''


def test_the_default_is_the_softmax_over_the_catalogue():
    assert supervised_loss(Config().training.softmax) is catalogue_loss
    assert list(SUPERVISED_LOSSES) == [CATALOGUE, "vocabulary"]
    assert supervised_loss("vocabulary") is recommender_loss


def test_an_unknown_loss_is_one_line_that_names_the_nearest():
    with pytest.raises(InputError, match="--config.training.softmax: found 'vocabluary', .*nearest: vocabulary"):
        supervised_loss("vocabluary")


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_loss_is_added_by_a_file_and_a_line(tmp_path, monkeypatch, accumulation):
    (tmp_path / "new_loss.py").write_text(NEW_LOSS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(SUPERVISED_LOSSES, "doubled", importlib.import_module("new_loss").doubled)
    fields = {"vocab_size": 24, "d_model": 8, "d_kv": 4, "d_ff": 8, "num_heads": 2, "dropout_rate": 0.0}
    model = T5(T5Config(num_layers=1, num_decoder_layers=1, **fields), rngs=nnx.Rngs(0))
    graphdef = nnx.graphdef(model)
    tokens = jnp.arange(2, 10, dtype=jnp.int32).reshape(2, 4)
    segments = jnp.ones((2, 4), jnp.int32)
    batch = SupervisedBatch(tokens, segments, tokens, segments)

    def first_losses(name):
        config = Config().override({"training.softmax": name, "training.gradient_accumulation": accumulation})
        optimizer = make_optimizer()
        steps = make_steps(
            config, optimizer, id_generator=graphdef, recommender=graphdef, no_embedding=jnp.zeros(24, bool),
            places={"id_generator": None, "recommender": None},
        )  # fmt: skip
        assert set(steps) == {WARM_START, ID, RECOMMENDER}
        found = []
        for kind in (RECOMMENDER, WARM_START):
            params = nnx.state(T5(model.config, rngs=nnx.Rngs(0)), nnx.Param)
            _, metrics = steps[kind](create_train_state(params, optimizer), batch, np.float32(0.1), seed_key(0))
            found.append(float(metrics["loss"]))
        return found

    loss, warm_start_loss = first_losses("doubled")
    expected = float(recommender_loss(model, batch))
    np.testing.assert_allclose([loss, warm_start_loss], [2 * expected, expected], rtol=1e-5)
