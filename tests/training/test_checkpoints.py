"""Checkpoints: exact, replaceable, and never half."""

import json
import logging
import shutil
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import logging as absl_logging
from flax import nnx

from idgenrec_jax.data.packing import SupervisedBatch
from idgenrec_jax.errors import InputError
from idgenrec_jax.models.t5 import T5, T5Config
from idgenrec_jax.training.checkpoints import Checkpoints
from idgenrec_jax.training.optimizer import make_optimizer
from idgenrec_jax.training.steps import create_train_state, make_supervised_step, seed_key

CONFIG = T5Config(vocab_size=24, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_decoder_layers=1, num_heads=2)


@pytest.fixture
def warnings():
    """What absl logs, as (level, message), while the test runs."""
    records = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append((record.levelno, record.getMessage()))
    logger = absl_logging.get_absl_logger()
    logger.addHandler(handler)
    yield records
    logger.removeHandler(handler)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MiB in memory, where mounting is allowed."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a small file system needs privileges that this machine does not give")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def simple_state(value, size=10):
    return {"array": jnp.full(size, value, jnp.float32), "count": jnp.int32(value)}


def assert_same(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.mark.slow
def test_a_train_state_comes_back_bit_by_bit_and_goes_on_as_if_nothing_had_been(tmp_path):
    graphdef, params = nnx.split(T5(CONFIG, rngs=nnx.Rngs(0)), nnx.Param)
    optimizer = make_optimizer()
    step = make_supervised_step(graphdef, optimizer, dropout=False)
    segments = jnp.ones((2, 4), jnp.int32)
    tokens = jnp.arange(2, 10, dtype=jnp.int32).reshape(2, 4)
    batch = SupervisedBatch(tokens, segments, tokens, segments)
    rate, key = np.float32(0.01), seed_key(0)
    state, _ = step(create_train_state(params, optimizer), batch, rate, key)
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(1, {"recommender": state}, {"phase": 2})
    expected = jax.tree.map(np.array, state)
    after, _ = step(state, batch, rate, key)
    expected_after = jax.tree.map(np.array, after)

    like = jax.eval_shape(lambda: create_train_state(params, optimizer))
    like = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0])
        ),
        like,
    )
    restored = Checkpoints(tmp_path, keep=2).restore(1, {"recommender": like})["recommender"]
    assert_same(jax.tree.map(np.asarray, restored), expected)
    assert any(np.asarray(leaf).any() for leaf in jax.tree.leaves(restored.optimizer_state))
    assert_same(jax.tree.map(np.asarray, step(restored, batch, rate, key)[0]), expected_after)


def test_meta_is_exact_json(tmp_path):
    meta = {"phase": 3, "loss_sum": 0.1 + 0.2, "best": {"metrics": {"ndcg@10": 1 / 3}}, "none": None, "name": "Größe"}
    checkpoints = Checkpoints(tmp_path / "new" / "folder", keep=1)
    checkpoints.save(5, simple_state(1), meta)
    assert checkpoints.meta(5) == meta
    assert checkpoints.meta(5, required=("phase", "none")) == meta
    with pytest.raises(InputError, match="5/meta: found phase, .*, expected rounds as well; .*another --workdir$"):
        checkpoints.meta(5, required=("rounds", "phase"))


def test_the_newest_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for number in (8, 9, 10, 11):
        checkpoints.save(number, simple_state(number), {})
    assert checkpoints.numbers() == [10, 11]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["10", "11"]
    assert_same(checkpoints.restore(10, simple_state(0)), simple_state(10))


def test_what_was_saved_last_is_kept_whatever_its_number(tmp_path):
    """A run that goes on from an older state saves a lower number than one it has saved before."""
    checkpoints = Checkpoints(tmp_path, keep=2)
    for number, kept in ((100, [100]), (120, [100, 120]), (90, [120, 90]), (120, [90, 120]), (95, [120, 95])):
        checkpoints.save(number, simple_state(number), {})
        assert Checkpoints(tmp_path, keep=2).numbers() == kept
        assert checkpoints.newest(remedy="") == number
        assert_same(checkpoints.restore(number, simple_state(0)), simple_state(number))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["120", "95"]


def test_checkpoints_of_older_versions_count_as_older(tmp_path):
    """Their lists hold the files alone."""
    checkpoints = Checkpoints(tmp_path, keep=2)
    for number in (30, 40):
        checkpoints.save(number, simple_state(number), {})
        path = tmp_path / str(number) / "files.json"
        path.write_text(json.dumps(json.loads(path.read_text())["files"]))
    assert checkpoints.numbers() == [30, 40]
    checkpoints.save(20, simple_state(20), {})
    assert checkpoints.numbers() == [40, 20]


def test_no_folder_means_no_checkpoint(tmp_path):
    checkpoints = Checkpoints(tmp_path / "missing", keep=2)
    assert checkpoints.numbers() == [] and checkpoints.newest(remedy="") is None


def test_the_same_step_can_be_saved_again(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(3, simple_state(1), {"try": 1})
    checkpoints.save(3, simple_state(2), {"try": 2})
    assert checkpoints.numbers() == [3] and checkpoints.meta(3) == {"try": 2}
    assert_same(checkpoints.restore(3, simple_state(0)), simple_state(2))


def largest_file(folder):
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def test_a_truncated_newest_checkpoint_is_passed_over_with_a_warning(tmp_path, warnings):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (1, 2):
        checkpoints.save(step, simple_state(step, size=5000), {})
    victim = largest_file(tmp_path / "2" / "state")
    victim.write_bytes(victim.read_bytes()[:-1])
    warnings.clear()
    assert checkpoints.numbers() == [1]
    ((level, message),) = [record for record in warnings if record[0] >= logging.WARNING]
    assert level == logging.WARNING
    assert str(tmp_path / "2") in message and victim.name in message and "falling back" in message
    assert_same(checkpoints.restore(1, simple_state(0, size=5000)), simple_state(1, size=5000))


@pytest.mark.parametrize("damage", ["no list", "half a list", "a file is gone"])
def test_a_checkpoint_that_is_not_whole_is_not_used(tmp_path, damage):
    checkpoints = Checkpoints(tmp_path, keep=3)
    for step in (1, 2):
        checkpoints.save(step, simple_state(step), {})
    sizes = tmp_path / "2" / "files.json"
    if damage == "no list":
        sizes.unlink()
    elif damage == "half a list":
        sizes.write_bytes(sizes.read_bytes()[:20])
    else:
        largest_file(tmp_path / "2" / "meta").unlink()
    assert checkpoints.numbers() == [1]


def test_broken_checkpoints_alone_are_an_error_and_leftovers_of_killed_saves_are_not(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for number in (1, 2):
        checkpoints.save(number, simple_state(number), {})
    shutil.copytree(tmp_path / "1", tmp_path / "3.unfinished")
    (tmp_path / "1" / "files.json").write_text('{"order": "x", "files": 1}')
    victim = largest_file(tmp_path / "2" / "state")
    victim.unlink()
    with pytest.raises(InputError, match=f"{tmp_path}/1: files.json .*{tmp_path}/2: .*{victim.name}.*; the way out$"):
        checkpoints.newest(remedy="the way out")
    for name in ("1", "2"):
        shutil.rmtree(tmp_path / name)
    assert checkpoints.newest(remedy="") is None


DIFFERENT = {
    "shape": ({"array": jnp.zeros(9), "count": jnp.int32(0)}, r"array: found float32\[10\], expected float32\[9\]"),
    "dtype": ({"array": jnp.zeros(10), "count": jnp.float32(0)}, r"count: found int32\[\], expected float32\[\]"),
    "missing": ({"array": jnp.zeros(10)}, r"count: found int32\[\], expected no such array"),
    "more": (simple_state(0) | {"x": jnp.zeros(2)}, r"x: found no such array, expected float32\[2\]"),
}


@pytest.mark.parametrize("like, message", DIFFERENT.values(), ids=DIFFERENT)
def test_other_arrays_than_this_version_has_are_one_line(tmp_path, like, message):
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(1, simple_state(1), {})
    with pytest.raises(InputError, match=rf"{tmp_path}/1/state: {message}; .*another --workdir$"):
        checkpoints.restore(1, like)


@pytest.mark.parametrize("layout", ["no meta", "meta is no JSON", "no arrays' metadata", "nothing that Orbax knows"])
def test_another_layout_of_the_files_is_one_line(tmp_path, layout):
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(1, simple_state(1), {"phase": 1})
    if layout == "no meta":
        shutil.rmtree(tmp_path / "1" / "meta")
    elif layout == "meta is no JSON":
        (tmp_path / "1" / "meta" / "metadata").write_text("{")
    elif layout == "no arrays' metadata":
        (tmp_path / "1" / "state" / "_METADATA").unlink()
    else:
        shutil.rmtree(tmp_path / "1")
        (tmp_path / "1").mkdir()
    message = rf"{tmp_path}/1: cannot be read \(.*\); expected .*another --workdir$"
    with pytest.raises(InputError, match=message) as caught:
        checkpoints.meta(1)
        checkpoints.restore(1, simple_state(0))
    assert "\n" not in str(caught.value)


def test_a_broken_checkpoint_does_not_take_the_place_of_a_whole_one(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for number in (1, 5):
        checkpoints.save(number, simple_state(number), {})
    (tmp_path / "5" / "files.json").unlink()
    checkpoints.save(2, simple_state(2), {})
    assert checkpoints.numbers() == [1, 2]


LEFTOVERS = "2.unfinished", "7.unfinished", "7.unfinished.orbax-checkpoint-tmp-12", "9.orbax-checkpoint-tmp-3"


@pytest.mark.parametrize("name", LEFTOVERS)
def test_what_a_killed_save_left_behind_is_no_checkpoint_and_cleared_by_the_next(tmp_path, name):
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(1, simple_state(1), {})
    shutil.copytree(tmp_path / "1", tmp_path / name)
    assert checkpoints.numbers() == [1]
    checkpoints.save(2, simple_state(2), {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]
    assert_same(checkpoints.restore(2, simple_state(0)), simple_state(2))


def test_a_folder_that_cannot_be_written_to_is_one_line(tmp_path):
    (tmp_path / "checkpoints").touch()
    checkpoints = Checkpoints(tmp_path / "checkpoints" / "latest", keep=2)
    with pytest.raises(InputError, match=f"^{tmp_path}/checkpoints/latest/1: cannot be written .*; expected a folder"):
        checkpoints.save(1, simple_state(1), {})


def test_a_full_disk_says_so_and_the_checkpoint_before_still_loads(small_disk, warnings):
    checkpoints = Checkpoints(small_disk / "latest", keep=2)
    rng = np.random.default_rng(0)
    states = [{"array": jnp.asarray(rng.standard_normal(180_000), jnp.float32)} for _ in range(3)]
    for step in (0, 1):
        checkpoints.save(step, states[step], {"step": step})
    with pytest.raises(InputError, match=r"latest/2: no space left on the disk for a checkpoint; free some") as caught:
        checkpoints.save(2, states[2], {"step": 2})
    assert "\n" not in str(caught.value)
    assert checkpoints.numbers() == [0, 1] and checkpoints.meta(1) == {"step": 1}
    assert_same(checkpoints.restore(1, states[0]), states[1])
    assert sorted(path.name for path in (small_disk / "latest").iterdir()) == ["0", "1"], "what was begun is cleared"
    errors = [message for level, message in warnings if level >= logging.ERROR]
    assert not errors, "the one-line error is all that is shown"
