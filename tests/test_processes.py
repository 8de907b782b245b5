"""Two real processes with two devices each: decisions, arrays and checkpoints they share, and the loss of either."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from idgenrec_jax import processes
from idgenrec_jax.training.checkpoints import Checkpoints

PROGRAM = '''
import json, pathlib
from absl import flags
from idgenrec_jax.launch.command_line import define_process_flags, run, start_processes

FOLDER = flags.DEFINE_string("folder", None, "")
define_process_flags()

def main():
    start_processes()
    import jax, numpy as np
    from jax.sharding import NamedSharding, PartitionSpec
    from idgenrec_jax.errors import InputError
    from idgenrec_jax.processes import any_process, from_main, is_main, put, readable
    from idgenrec_jax.training.checkpoints import Checkpoints

    folder, number = pathlib.Path(FOLDER.value), jax.process_index()
    found = {"devices": jax.device_count(), "value": from_main(lambda: {"of": number, "text": "ä" * 300})}

    def fail():
        raise InputError("the reason")

    def fail_to_write():
        raise OSError(28, "No space left on device")

    for failure in (fail, fail_to_write):
        try:
            from_main(failure)
        except (InputError, OSError) as error:
            found[failure.__name__] = str(error)
    asked = iter([False, False, number == 1, False, False, False, False, False])
    agreed = any_process(lambda: next(asked))
    found["agreed"] = [agreed() for _ in range(8)]

    mesh = jax.make_mesh((2, 2), ("x", "y"))
    split = NamedSharding(mesh, PartitionSpec(("x", "y")))
    rows = np.arange(24, dtype=np.float32).reshape(8, 3)
    array = put({"rows": rows, "none": None}, split)["rows"]
    found["held"] = sorted(np.asarray(shard.data)[0, 0].item() for shard in array.addressable_shards)
    found["whole"] = array.is_fully_addressable
    found["stays"] = put({"rows": array}, split)["rows"] is array
    found["read"] = np.asarray(readable(array * 2)).tolist()

    checkpoints = Checkpoints(folder / "made", keep=1)
    crossed = NamedSharding(mesh, PartitionSpec("y", None))
    for step in (1, 2):
        checkpoints.save(step, {"split": array + step, "crossed": put(rows, crossed)}, {"by": number, "step": step})
    found["steps"], found["meta"] = checkpoints.numbers(), checkpoints.meta(2)
    like = jax.ShapeDtypeStruct((8, 3), np.float32, sharding=split)
    given = Checkpoints(folder / "given", keep=1).restore(7, {"rows": like})["rows"]
    found["restored sharding"] = given.sharding == split
    found["restored"] = np.asarray(readable(given)).tolist()
    (folder / f"found_{number}.json").write_text(json.dumps(found))
    while True:
        from_main(lambda: None)

run(main)
'''

ROWS = np.arange(24, dtype=np.float32).reshape(8, 3)
SECONDS_TO_START = 240.0
SECONDS_TO_END = 60.0


def start_both(folder, environment):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = [sys.executable, "-c", PROGRAM, f"--folder={folder}", f"--coordinator=127.0.0.1:{port}"]
    return [
        subprocess.Popen(
            [*common, "--num_processes=2", f"--process_id={number}"], env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for number in range(2)
    ]  # fmt: skip


def await_files(pair, folder):
    deadline = time.monotonic() + SECONDS_TO_START
    while not all((folder / f"found_{number}.json").exists() for number in range(2)):
        ended = [process for process in pair if process.poll() is not None]
        assert not ended, ended[0].communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return [json.loads((folder / f"found_{number}.json").read_text()) for number in range(2)]


@pytest.fixture(scope="module")
def lost(tmp_path_factory):
    """Two pairs of processes, of which one loses process 0 and the other process 1, and what they had found before.

    Returns the folders, the findings, and (exit code, stderr, seconds after the kill) of the survivor, by the number
    of the killed process.
    """
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "2", "JAX_PLATFORMS": "cpu"}
    folders = [tmp_path_factory.mktemp(f"lost_{victim}") for victim in range(2)]
    for folder in folders:
        Checkpoints(folder / "given", keep=1).save(7, {"rows": jax.numpy.asarray(ROWS)}, {})
    pairs = [start_both(folder, environment) for folder in folders]
    try:
        found = [await_files(pair, folder) for pair, folder in zip(pairs, folders, strict=True)]
        for victim, pair in enumerate(pairs):
            pair[victim].send_signal(signal.SIGKILL)
        killed = time.monotonic()
        survivors = []
        for victim, pair in enumerate(pairs):
            _, errors = pair[1 - victim].communicate(timeout=2 * SECONDS_TO_END)
            survivors.append((pair[1 - victim].returncode, errors, time.monotonic() - killed))
    finally:
        for process in (process for pair in pairs for process in pair):
            process.kill()
            process.communicate()
    return folders, found, survivors


@pytest.mark.slow
def test_all_processes_get_the_value_and_the_error_of_process_0(lost):
    for found in lost[1][0]:
        assert found["devices"] == 4
        assert found["value"] == {"of": 0, "text": "ä" * 300}
        assert found["fail"] == "the reason"
        assert "No space left on device" in found["fail_to_write"]


@pytest.mark.slow
def test_a_signal_to_one_process_is_seen_by_all_at_the_same_call(lost):
    one, other = lost[1][0]
    assert one["agreed"] == other["agreed"]
    assert one["agreed"].count(True) == 1 and one["agreed"].index(True) >= 2


@pytest.mark.slow
def test_each_process_holds_its_own_rows_and_reads_those_of_all(lost):
    one, other = lost[1][0]
    assert not one["whole"] and len(one["held"]) == 2
    assert one["stays"] and other["stays"]
    assert sorted(one["held"] + other["held"]) == ROWS[::2, 0].tolist()
    assert one["read"] == other["read"] == (2 * ROWS).tolist()


@pytest.mark.slow
def test_a_checkpoint_of_two_processes_is_read_by_one_and_the_other_way_round(lost):
    folders, found, _ = lost
    checkpoints = Checkpoints(folders[0] / "made", keep=1)
    assert checkpoints.numbers() == [2]
    assert checkpoints.meta(2) == {"by": 0, "step": 2}
    like = {"split": jax.numpy.zeros((8, 3)), "crossed": jax.numpy.zeros((8, 3))}
    restored = checkpoints.restore(2, like)
    np.testing.assert_array_equal(restored["split"], ROWS + 2)
    np.testing.assert_array_equal(restored["crossed"], ROWS)
    assert restored["split"].sharding == like["split"].sharding
    for one in found[0]:
        assert one["steps"] == [2] and one["meta"] == {"by": 0, "step": 2}
        assert one["restored sharding"] and one["restored"] == ROWS.tolist()


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_the_loss_of_a_process_ends_the_other_with_a_line_that_says_so(lost, victim):
    code, errors, seconds = lost[2][victim]
    assert code == processes.PROCESS_LOST, errors
    assert seconds < SECONDS_TO_END
    last = errors.rstrip().splitlines()[-1]
    assert re.fullmatch("error: .* another process of this run has ended or cannot be reached .*", last)


def test_one_process_alone_decides_and_reads_for_itself():
    assert processes.is_main() and not processes.has_others()
    value = object()
    assert processes.from_main(lambda: value) is value
    ask = lambda: True  # noqa: E731
    assert processes.any_process(ask) is ask
    array = processes.put(ROWS, None)
    assert processes.readable(array) is array
