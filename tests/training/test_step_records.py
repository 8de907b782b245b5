"""Records of single steps: which, with what, and when they are read."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from idgenrec_jax.data.packing import SupervisedBatch
from idgenrec_jax.errors import InputError
from idgenrec_jax.training import step_records
from idgenrec_jax.training.step_records import StepRecords, count_examples


@pytest.fixture
def clock(monkeypatch):
    """A clock whose time is the last element of the list."""
    now = [0.0]
    monkeypatch.setattr(step_records.time, "monotonic", lambda: now[-1])
    return now


def place(step):
    return {"step": step, "round": 1, "phase": "id", "epoch": 2, "split": "train_step"}


def metrics(step):
    return {"loss": jnp.float32(step / 4), "gradient_norm": jnp.float32(step)}


def take(records, steps):
    for step in steps:
        records.add(place(step), metrics(step), title="epoch 2", learning_rate=0.5 / step, examples=10)


def test_every_so_many_steps_of_the_run_are_recorded_once_a_later_one_was_dispatched():
    written = []
    records = StepRecords(3, written.append)
    take(records, range(1, 4))
    assert written == []
    take(records, [4])
    (record,) = written
    assert record.pop("examples_per_second") > 0
    assert record == {**place(3), "loss": 0.75, "learning_rate": 0.5 / 3, "gradient_norm": 3.0}
    take(records, range(5, 10))
    records.flush()
    records.flush()
    assert [record["step"] for record in written] == [3, 6, 9]


def test_a_step_is_never_waited_for_before_the_next_is_dispatched(monkeypatch):
    read = []
    device_get = jax.device_get
    monkeypatch.setattr(step_records.jax, "device_get", lambda tree: read.append(tree) or device_get(tree))
    records = StepRecords(1, lambda record: None)
    for step in (1, 2, 3):
        take(records, [step])
        assert len(read) == step - 1


def test_zero_records_nothing():
    written = []
    records = StepRecords(0, written.append)
    take(records, range(1, 9))
    records.flush()
    assert written == []


def test_the_speed_is_that_of_the_steps_since_the_record_before_without_the_first_dispatch(clock):
    """The first dispatch of an epoch, which ends at second 100, may have compiled."""
    written = []
    records = StepRecords(2, written.append)
    for step, now in zip(range(1, 6), (100.0, 101.0, 102.0, 103.0, 107.0), strict=True):
        clock.append(now)
        take(records, [step])
    # 10 examples between the seconds 100 and 102, then 20 until 107.
    assert [record["examples_per_second"] for record in written] == [5.0, 4.0]


def test_the_clock_is_started_again_after_other_work(clock):
    written = []
    records = StepRecords(1, written.append)
    take(records, [1])
    clock.append(2.0)
    records.flush()
    clock.append(50.0)
    records.restart_clock()
    take(records, [2])
    clock.append(54.0)
    records.flush()
    assert [record["examples_per_second"] for record in written] == [5.0, 2.5]


@pytest.mark.parametrize("name", ["loss", "gradient_norm"])
def test_what_is_not_finite_is_one_line_and_no_record(name):
    written = []
    records = StepRecords(1, written.append)
    records.add(place(4), metrics(4) | {name: jnp.float32(np.nan)}, title="an epoch", learning_rate=1.0, examples=1)
    spelled = name.replace("_", " ")
    with pytest.raises(InputError, match=f"^an epoch, step 4: the {spelled} is nan; lower the learning rate") as caught:
        records.flush()
    assert str(caught.value).endswith("(--config.training.id_learning_rate) and train in another --workdir")
    assert written == []


def test_the_examples_of_a_batch_are_counted_over_its_rows():
    segments = np.array([[1, 1, 2, 0], [1, 2, 3, 3], [0, 0, 0, 0]], np.int32)
    assert count_examples(SupervisedBatch(segments, segments, segments, segments)) == 5
