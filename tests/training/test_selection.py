"""Which state of a run is the best, and what is kept of it."""

import jax.numpy as jnp
import numpy as np
import pytest

from idgenrec_jax.errors import InputError
from idgenrec_jax.training.phases import ID, RECOMMENDER, Phase
from idgenrec_jax.training.run_state import RunState
from idgenrec_jax.training.selection import Selection
from idgenrec_jax.training.steps import TrainState


def state_at(step, value, **fields):
    """A run's state whose parameters are `value` and -`value`."""
    models = [TrainState({"kernel": jnp.full(3, sign * value, jnp.float32)}, (), jnp.int32(0)) for sign in (1, -1)]
    return RunState(*models, global_step=step, epoch=2, id_round=1, **fields)


def offer(selection, state, value, kind=RECOMMENDER):
    selection.offer(state, Phase(kind, 1, 2), {"hr@10": 1 - value, "ndcg@10": value}, [0, -1, state.global_step])


def test_the_best_by_ndcg_is_kept_with_its_ranks_and_misses_are_of_recommender_phases(tmp_path):
    selection, best, missed = Selection(tmp_path), None, 0
    for step, (value, kind, misses) in enumerate(
        [(0.25, RECOMMENDER, 0), (0.125, ID, 0), (0.25, RECOMMENDER, 1), (0.5, ID, 0), (0.375, RECOMMENDER, 1)], 1
    ):
        state = state_at(step, float(step), best=best, misses=missed)
        offer(selection, state, value, kind)
        best, missed = state.best, state.misses
        assert missed == misses
    assert best == {
        "step": 4, "round": 1, "phase": ID, "epoch": 2, "id_round": 1, "metrics": {"hr@10": 0.5, "ndcg@10": 0.5},
    }  # fmt: skip
    params = selection.params(state)
    np.testing.assert_array_equal(params["id_generator"]["kernel"], np.full(3, 4.0, np.float32))
    np.testing.assert_array_equal(params["recommender"]["kernel"], np.full(3, -4.0, np.float32))
    assert selection.ranks(state) == [0, -1, 4]


def test_a_run_that_goes_on_from_an_older_state_finds_what_it_saves_then(tmp_path):
    selection = Selection(tmp_path)
    older = state_at(5, 5.0)
    offer(selection, older, 0.125)
    for step in (100, 120):
        offer(selection, state_at(step, float(step), best=older.best), 0.25)
    again = state_at(90, 90.0, best=older.best)
    offer(selection, again, 0.5)
    assert again.best["step"] == 90 and selection.ranks(again)[-1] == 90
    np.testing.assert_array_equal(selection.params(again)["id_generator"]["kernel"], np.full(3, 90.0, np.float32))


def test_a_best_state_that_is_no_longer_whole_is_one_line(tmp_path):
    selection, state = Selection(tmp_path), state_at(7, 1.0)
    offer(selection, state, 0.5)
    folder = tmp_path / "checkpoints" / "best" / "7"
    (folder / "files.json").unlink()
    with pytest.raises(InputError, match=f"^{folder}: files.json is missing"):
        selection.params(state)
