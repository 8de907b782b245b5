"""Training on the embedded sample by two real processes of two devices, compared with one process of four.

One of the two is killed, and both are started again. Two processes sum the devices' parts in another order than one:
the losses differ by a rounding at first, and the longer and the faster the models learn, the more. The batches are
large, so that the steps are few, and the learning rates are below those at which Adam amplifies the difference.
"""

import json
import re
import signal
import socket
import subprocess
import time

import jax
import numpy as np
import pytest
from program_runs import DEADLINE, FinishedRun, environment, read_records, the_error, tiny_flags, without_seconds

from idgenrec_jax.processes import PROCESS_LOST
from idgenrec_jax.trained_run import load_run

# Over the minute configuration: 20 steps of warm start, 2 of the ID phase and 14 of the recommender phase.
SHORT = {
    "recommender__d_model": 32,
    "id_generator__d_model": 32,
    "ids__batch_size": 64,
    "training__rounds": 1,
    "training__embedding_learning_rate_factor": 5.0,
    "training__warm_start_epochs": 20,
    "training__warm_start_batch_size": 512,
    "training__warm_start_learning_rate": 1e-2,
    "training__id_batch_size": 32,
    "training__id_items_per_batch": 96,
    "training__id_learning_rate": 1e-3,
    "training__recommender_batch_size": 1024,
    "training__recommender_learning_rate": 5e-3,
    "evaluation__batch_size": 256,
}
RECOMMENDER_PHASE = 2
SECONDS_TO_NOTICE = 60.0
# Processes that wait for each other at every sum are slowed down most by what else the machine does.
SECONDS_TO_TRAIN = 3 * DEADLINE


def sample_flags(workdir, **overrides):
    """The flags of a short training on the embedded sample, with its own tokenizer."""
    return [f"--workdir={workdir}", "--data=sample", *tiny_flags(**SHORT, **overrides)]


def start(programs, program, *flags, devices):
    """Start a program on so many simulated devices; its output is piped."""
    return subprocess.Popen(
        programs.command(program, *flags), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        cwd=programs.folder,
        env=environment(programs.compiled) | {"JAX_NUM_CPU_DEVICES": str(devices), "JAX_PLATFORMS": "cpu"},
    )  # fmt: skip


def start_two(programs, program, *flags):
    """Start a program as two processes of two devices each."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    return [
        start(
            programs, program, *flags,
            f"--coordinator={address}", "--num_processes=2", f"--process_id={number}", devices=2,
        )
        for number in range(2)
    ]  # fmt: skip


def finish(*processes):
    """Return the output and the errors of each process, all of which must succeed."""
    outputs = [process.communicate(timeout=SECONDS_TO_TRAIN) for process in processes]
    for process, (_, errors) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, errors
    return outputs


def in_recommender_phase(workdir):
    """Whether a checkpoint within the recommender phase is whole."""
    for path in (workdir / "checkpoints" / "latest").glob("*/files.json"):
        try:
            meta = json.loads((path.parent / "meta" / "metadata").read_text())
        except (OSError, ValueError):
            continue  # Deleted, because it is too old, between the listing and the reading.
        if meta["phase"] == RECOMMENDER_PHASE and meta["step"] > 0:
            return True
    return False


@pytest.fixture(scope="module")
def runs(programs):
    """The run of two processes, of which one is killed, the other ends, and both are started again; and that of one.

    Returns what `together` and `alone` return. The run of one process passes the seconds in which the process that was
    left waits to hear of the other.
    """
    workdir, workdir_alone = programs.folder / "two_processes", programs.folder / "one_process"
    flags = sample_flags(workdir, training__checkpoint_every_steps=1)
    kept, killed = start_two(programs, "train", *flags)
    deadline = time.monotonic() + SECONDS_TO_TRAIN
    while not in_recommender_phase(workdir):
        assert kept.poll() is None and killed.poll() is None, kept.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    moment = time.monotonic()
    one = start(programs, "train", *sample_flags(workdir_alone), devices=4)
    _, errors = kept.communicate(timeout=DEADLINE)
    left = kept.returncode, errors, time.monotonic() - moment
    until_killed = killed.communicate()
    assert not (workdir / "results.json").exists()
    (printed,) = finish(one)
    again = finish(*start_two(programs, "train", *sample_flags(workdir)))
    return (workdir, left, until_killed, again), FinishedRun(workdir_alone, *printed)


@pytest.fixture(scope="module")
def together(runs):
    """The workdir of two processes, and what they printed.

    (exit code, errors, seconds after the kill) of the one that was left, the output and errors of the one that was
    killed, and those of each after the second start.
    """
    return runs[0]


@pytest.fixture(scope="module")
def alone(runs):
    """The run of one process with four devices."""
    return runs[1]


@pytest.mark.slow
def test_a_killed_process_ends_the_other_within_a_minute_with_a_line_that_says_so(together):
    _, (code, errors, seconds), *_ = together
    assert code == PROCESS_LOST, errors
    assert seconds < SECONDS_TO_NOTICE
    last = errors.rstrip().splitlines()[-1]
    assert re.fullmatch(r"error: .* another process of this run has ended or cannot be reached .*", last)


@pytest.mark.slow
def test_two_processes_started_again_end_with_the_run_of_one(together, alone):
    """The losses may differ by the order in which the devices' parts are summed; all that follows from them may not."""
    workdir, _, _, ((_, errors), _) = together
    assert "resuming from step" in errors
    results = json.loads((workdir / "results.json").read_text())
    for block in ("validation", "test", "selected", "example_ids"):
        assert results[block] == alone.results[block], block
    assert results["test"]["hr@10"] > 0, "that no target is found in either run would say nothing"
    records, expected = read_records(workdir), alone.records
    before, after = (record["loss"] for record in expected if record["split"] == "validation")
    assert after < 0.7 * before, "the recommender phase has taught nothing that could differ"
    for name in ("loss", "gradient_norm"):
        found = [record.pop(name) for record in records if name in record]
        assert found == pytest.approx([record.pop(name) for record in expected if name in record]), name
    assert without_seconds(records) == without_seconds(expected)
    for path in sorted((alone.workdir / "ids").iterdir()):
        assert (workdir / "ids" / path.name).read_text() == path.read_text(), path.name
    assert not list((workdir / "checkpoints").rglob("*orbax-checkpoint-tmp*"))


@pytest.mark.slow
def test_only_process_0_speaks_and_the_other_warns_with_its_number(together):
    """It warns of IDs that are not unique; those were written before it was killed."""
    _, _, killed, ((output, errors), again) = together
    assert "results.json" in output
    assert "ready to train" in errors
    warnings = []
    for other_output, other_errors in (killed, again):
        assert "results.json" not in other_output
        said = [line for line in other_errors.splitlines() if line.strip() and not line.startswith("[Gloo]")]
        assert all(re.match(r"W.*\] process 1: ", line) for line in said), other_errors
        warnings += said
    assert any("have no unique ID" in line for line in warnings), killed[1]


@pytest.mark.slow
def test_one_device_restores_what_two_processes_saved(together, alone):
    restored, expected = load_run(together[0]), load_run(alone.workdir)
    assert restored.selected == expected.selected
    for found, other in zip(jax.tree.leaves(restored.params), jax.tree.leaves(expected.params), strict=True):
        np.testing.assert_allclose(found, other, atol=1e-3)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--coordinator=localhost:1234"], "--num_processes and --process_id: missing"),
        (["--num_processes=2", "--process_id=0"], "--coordinator: missing"),
        (["--coordinator=localhost:1234", "--num_processes=2", "--process_id=2"], "--process_id=2: expected 0 to 1"),
        (["--coordinator=host", "--num_processes=2", "--process_id=0"], "--coordinator=host: expected HOST:PORT"),
        (["--distributed"], "--distributed: cannot join the other processes"),
    ],
)
def test_flags_that_tell_of_no_other_process_are_one_line(programs, flags, expected):
    assert expected in the_error(programs.run("evaluate", f"--workdir={programs.folder}", *flags))
