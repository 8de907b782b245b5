"""What a checkpoint keeps of a run beside its arrays, and what other versions kept."""

import json
from pathlib import Path

import jax.numpy as jnp
import pytest

from idgenrec_jax.errors import InputError
from idgenrec_jax.training.run_state import RunState
from idgenrec_jax.training.steps import TrainState

SOURCE = Path("run/checkpoints/latest/7")
MODELS = [TrainState({"kernel": jnp.full(2, number, jnp.float32)}, (), jnp.int32(number)) for number in range(4)]
BEST = {"step": 9, "metrics": {"ndcg@10": 0.25}}
META = {
    "phase": 2, "epoch": 1, "step": 3, "global_step": 12, "saves": 5, "validation_due": True, "loss_sum": 0.5,
    "id_round": 1, "best": BEST, "misses": 2, "records": 6, "seconds": 1.5,
}  # fmt: skip


def restore(meta):
    arrays = {"generator": MODELS[2], "recommender": MODELS[3]}
    return RunState(*MODELS[:2]).with_meta(meta, arrays, source=SOURCE)


def test_what_is_saved_comes_back():
    state = RunState(*MODELS[:2], **META | {"loss_sum": jnp.float32(0.5)})
    assert json.loads(json.dumps(state.to_meta())) == META
    assert state.arrays() == {"generator": MODELS[0], "recommender": MODELS[1]}
    restored = restore(META)
    assert restored.to_meta() == META
    assert (restored.id_generator, restored.recommender) == (MODELS[2], MODELS[3])


def test_a_checkpoint_of_the_first_versions_loads():
    """It has no validation within a phase, and no number of saves."""
    old = {name: value for name, value in META.items() if name not in ("saves", "validation_due")}
    restored = restore(old | {"best": None})
    assert (restored.saves, restored.validation_due, restored.best, restored.global_step) == (0, False, None, 12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"phase": None}, "phase: found None, expected int"),
        ({"epoch": "1"}, "epoch: found '1', expected int"),
        ({"step": True}, "step: found True, expected int"),
        ({"best": []}, r"best: found \[\], expected dict"),
        ({"temperature": 1}, "temperature: found 1, expected no such field"),
        ("id_round", "id_round: found nothing, expected int"),
    ],
)
def test_the_fields_of_another_version_are_one_line(change, message):
    meta = {name: value for name, value in META.items() if name != change} if isinstance(change, str) else META | change
    with pytest.raises(InputError, match=rf"^run/checkpoints/latest/7: {message}.*another --workdir$"):
        restore(meta)
