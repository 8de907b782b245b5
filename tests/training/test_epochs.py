"""The epochs of a run: those planned ahead are those that are asked for without a plan."""

import threading

import jax
import numpy as np
import pytest

from idgenrec_jax.data.recommender_batches import recommender_epoch
from idgenrec_jax.errors import InputError
from idgenrec_jax.experiment import make_epochs, train
from idgenrec_jax.run_files import LATEST_CHECKPOINTS
from idgenrec_jax.training.alternation import Interrupted
from idgenrec_jax.training.phases import CAUSAL, ID, RECOMMENDER, WARM_START
from idgenrec_jax.training.warm_start import WarmStart
from tests.ids.test_rounds import make_config, make_ids, regenerate, write_given_table


@pytest.fixture
def ids(tmp_path):
    """IDs for ten items, from a file, and the inputs they belong to."""
    made, inputs = make_ids(tmp_path / "ids", **write_given_table(tmp_path / "given.txt"))
    return regenerate(made, given=inputs.given_ids), inputs


def all_batches(batches):
    return [batches.batch(step) for step in range(len(batches))]


def same(left, right):
    return jax.tree.structure(left) == jax.tree.structure(right) and all(
        np.array_equal(a, b) for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    )


@pytest.mark.parametrize("kind", [WARM_START, ID, RECOMMENDER, CAUSAL])
def test_an_epoch_that_was_planned_ahead_is_the_same(ids, kind):
    config = make_config(**{"training.recommender_batch_size": 4, "training.id_batch_size": 2})
    ahead, fresh = make_epochs(config, *ids, row_multiple=2), make_epochs(config, *ids, row_multiple=2)
    found = [all_batches(ahead.batches(kind, 0, epoch, is_last=epoch == 2)) for epoch in range(3)]
    for epoch, batches in enumerate(found):
        assert same(batches, all_batches(fresh.batches(kind, 0, epoch, is_last=True)))
    assert not same(found[0], found[1])


@pytest.mark.parametrize(("kind", "multiple"), [(WARM_START, 6), (RECOMMENDER, 6), (CAUSAL, 6), (ID, 8)])
def test_every_part_of_a_step_has_rows_for_every_device(ids, kind, multiple):
    config = make_config(**{"training.gradient_accumulation": 3, "training.id_chunks": 4, "training.id_batch_size": 4})
    batch = make_epochs(config, *ids, row_multiple=2).batches(kind, 0, 0, is_last=True).batch(0)
    assert all(len(array) % multiple == 0 for array in jax.tree.leaves(batch))


def test_the_next_epoch_is_planned_meanwhile_and_not_across_new_ids(ids):
    epochs = make_epochs(make_config(), *ids, row_multiple=1)
    epochs.batches(RECOMMENDER, 0, 4, is_last=False)
    ((planned, future),) = epochs._ahead.items()
    assert planned == (RECOMMENDER, 0, 5) and len(future.result(timeout=60)) > 0
    assert epochs.batches(RECOMMENDER, 0, 5, is_last=True) is future.result()
    assert not epochs._ahead
    epochs.batches(RECOMMENDER, 0, 6, is_last=False)
    epochs.batches(RECOMMENDER, 1, 7, is_last=True)
    assert not epochs._ahead


def test_what_goes_wrong_in_the_thread_is_raised_where_the_epoch_is_asked_for(ids, monkeypatch):
    epochs = make_epochs(make_config(), *ids, row_multiple=1)

    def epoch_at_fault(*_, epoch, **settings):
        if epoch == 2:
            raise InputError("prompts.txt:3: no room")
        return recommender_epoch(*_, epoch=epoch, **settings)

    monkeypatch.setattr("idgenrec_jax.training.epochs.recommender_epoch", epoch_at_fault)
    assert len(epochs.batches(RECOMMENDER, 0, 1, is_last=False)) > 0
    with pytest.raises(InputError, match="prompts.txt:3: no room") as caught:
        epochs.batches(RECOMMENDER, 0, 2, is_last=True)
    assert caught.traceback[-1].name == "epoch_at_fault", "the traceback shows where it went wrong"


class Stopped(Exception):
    """What `stop` raises."""


def stop():
    raise Stopped


def test_a_stop_does_not_wait_for_the_shape_of_the_batches(ids, monkeypatch):
    may_end = threading.Event()
    monkeypatch.setattr("idgenrec_jax.training.epochs.training_shape", lambda *_, **__: may_end.wait(60))
    with pytest.raises(Stopped):
        make_epochs(make_config(), *ids, row_multiple=1).batches(RECOMMENDER, 0, 0, is_last=True, check_stop=stop)
    may_end.set()


@pytest.mark.parametrize("ahead", [False, True])
def test_a_stop_does_not_wait_for_a_plan(ids, monkeypatch, ahead):
    may_end = threading.Event()

    def long_epoch(*_, epoch, **settings):
        if epoch == 2:
            assert may_end.wait(60)
        return recommender_epoch(*_, epoch=epoch, **settings)

    epochs = make_epochs(make_config(), *ids, row_multiple=1)
    monkeypatch.setattr("idgenrec_jax.training.epochs.recommender_epoch", long_epoch)
    epochs.batches(RECOMMENDER, 0, 1, is_last=not ahead)
    with pytest.raises(Stopped):
        epochs.batches(RECOMMENDER, 0, 2, is_last=True, check_stop=stop)
    may_end.set()


@pytest.mark.slow
def test_a_run_that_is_stopped_while_it_waits_for_a_plan_is_saved(tmp_path, monkeypatch):
    may_end = threading.Event()
    monkeypatch.setattr(WarmStart, "epoch", lambda self, epoch: may_end.wait(60))
    small = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_decoder_layers": 1, "num_heads": 2}
    sizes = {f"{model}.{name}": value for model in ("id_generator", "recommender") for name, value in small.items()}
    with pytest.raises(Interrupted):
        train(make_config(**sizes), tmp_path, should_stop=lambda: True)
    may_end.set()
    assert any(path.is_file() for path in (tmp_path / LATEST_CHECKPOINTS).rglob("*")), "the state is saved"
