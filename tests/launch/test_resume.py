"""Runs that were killed, stopped or ran out of disk, and go on with the same command as if nothing had happened."""

import json
import os
import re
import shutil
import signal
import subprocess
import time

import pytest
from program_runs import DEADLINE, FinishedRun, assert_same_run, the_error

from idgenrec_jax.training.checkpoints import Checkpoints

pytestmark = pytest.mark.slow

POLL_SECONDS = 0.003
ATTEMPTS = 3
# How often a run saves has no influence on what it computes, so the undisturbed run need not save as often.
EVERY_STEP = {"training__checkpoint_every_steps": 1}
# Numbers of phases in the undisturbed run; the warm start is phase 0.
FIRST_ID, FIRST_RECOMMENDER, SECOND_RECOMMENDER = 1, 2, 4


def newest_cursor(workdir):
    """The (phase, epoch, step) of the newest whole checkpoint, None where there is none."""
    found = []
    for path in (workdir / "checkpoints" / "latest").glob("*/files.json"):
        try:
            found.append((int(path.parent.name), json.loads((path.parent / "meta" / "metadata").read_text())))
        except (OSError, ValueError):
            # Deleted, because it is too old, between the listing and the reading.
            continue
    if not found:
        return None
    meta = max(found, key=lambda pair: pair[0])[1]
    return meta["phase"], meta["epoch"], meta["step"]


def wait_for(process, reached):
    """Poll `reached()` until it is true; the process must still run."""
    deadline = time.monotonic() + DEADLINE
    while not reached():
        assert process.poll() is None, f"ended before the moment came:\n{process.communicate()[1]}"
        assert time.monotonic() < deadline
        time.sleep(POLL_SECONDS)


def disturb(programs, workdir, reached, number, **overrides):
    """Start the run, send the signal when `reached()`, and return the exit code, stdout and stderr."""
    with programs.start("train", *programs.train_flags(workdir, **overrides, **EVERY_STEP)) as process:
        wait_for(process, reached)
        process.send_signal(number)
        output, errors = process.communicate(timeout=60)
    return process.returncode, output, errors


def kill_at(programs, workdir, reached):
    """Kill the run at a moment; tries again, from a copy of the workdir, where the kill came too late.

    What counts is what the dead process left on the disk: `reached()` must still be true of it.
    """
    before = workdir.with_name(f"{workdir.name}_before")
    if workdir.exists():
        shutil.copytree(workdir, before)
    for _ in range(ATTEMPTS):
        code, _, errors = disturb(programs, workdir, reached, signal.SIGKILL)
        assert code == -signal.SIGKILL, errors
        if reached():
            shutil.rmtree(before, ignore_errors=True)
            return
        shutil.rmtree(workdir)
        if before.exists():
            shutil.copytree(before, workdir)
    pytest.fail("the run was never killed at the wanted moment")


def within(workdir, phase):
    """Whether the newest checkpoint lies within an epoch of a phase."""
    cursor = newest_cursor(workdir)
    return cursor is not None and cursor[0] == phase and cursor[2] > 0


def go_on(programs, workdir, reference):
    """The same command, but for how often it saves: it must resume and end like the undisturbed run. Returns stderr."""
    result = programs.train(workdir, "--tensorboard")
    assert "resuming from step" in result.stderr
    assert_same_run(workdir, reference)
    assert len(list((workdir / "tensorboard").glob("events.out.tfevents.*"))) == 1
    assert not list((workdir / "checkpoints").rglob("*orbax-checkpoint-tmp*"))
    return result.stderr


def test_kills_at_every_kind_of_moment_leave_no_trace_in_the_results(programs, finished):
    """One run is killed five times in a row, so that resumed runs are killed and resumed as well."""
    workdir = programs.folder / "killed"

    def before_the_first_checkpoint():
        return (workdir / "config.json").exists() and newest_cursor(workdir) is None

    def while_a_phase_ends():
        # The ID phase's last step is saved and its IDs are written, but they are not validated yet.
        return newest_cursor(workdir) == (FIRST_ID, 1, 0) and (workdir / "ids" / "round_1.jsonl").exists()

    kill_at(programs, workdir, before_the_first_checkpoint)
    kill_at(programs, workdir, lambda: within(workdir, FIRST_ID))
    kill_at(programs, workdir, while_a_phase_ends)
    kill_at(programs, workdir, lambda: newest_cursor(workdir) == (FIRST_RECOMMENDER, 0, 0))
    kill_at(programs, workdir, lambda: within(workdir, SECOND_RECOMMENDER))
    go_on(programs, workdir, finished)


def test_a_run_with_every_lever_of_id_phases_goes_on_from_within_one(programs):
    """What a leash holds to is that of before the phase, not of before the stop."""
    levers = {
        "training__order": "recommender_first", "training__rounds": 1, "training__final_recommender_epochs": 1,
        "training__id_temperature": 0.1, "training__id_straight_through": True, "training__id_leash": 0.5,
        "training__id_neighbour_weight": 0.5, "training__id_measured_examples": 16,
        "training__id_examples_per_epoch": 96, "data__neighbour_items": 2, "ids__acceptance_examples": 2,
    }  # fmt: skip
    undisturbed, workdir = programs.folder / "levers", programs.folder / "levers_stopped"
    result = programs.train(undisturbed, **levers)
    stopped = disturb(programs, workdir, lambda: within(workdir, 2), signal.SIGTERM, **levers)
    assert stopped[0] == 0, stopped[2]
    assert newest_cursor(workdir)[0] == 2 and newest_cursor(workdir)[2] > 0
    programs.train(workdir, **levers)
    reference = FinishedRun(undisturbed, result.stdout, result.stderr)
    assert_same_run(workdir, reference)
    (record,) = [record for record in reference.records if record["split"] == "ids"]
    assert record["phase"] == "id" and record["ids_changed"] > 0
    # Which prompts are measured is drawn, but whatever changed them, old and new IDs are not read alike.
    assert record["loss_old_ids"] != record["loss_new_ids"]
    validations = [record for record in reference.records if record["split"] == "validation"]
    assert record["validation_loss_before"] == pytest.approx(validations[0]["loss"], rel=1e-5)


def test_sigterm_saves_and_a_truncated_newest_checkpoint_falls_back(programs, finished):
    workdir = programs.folder / "terminated"
    code, output, errors = disturb(
        programs, workdir, lambda: within(workdir, FIRST_RECOMMENDER), signal.SIGTERM
    )
    assert code == 0, errors
    assert f"stopped and saved; the same command goes on ({workdir})" in output
    assert "SIGTERM: saving, then stopping" in errors and "Traceback" not in errors
    assert not (workdir / "results.json").exists()

    checkpoints = Checkpoints(workdir / "checkpoints" / "latest", keep=2)
    before, newest = checkpoints.numbers()
    step_before = checkpoints.meta(before)["global_step"]
    folder = workdir / "checkpoints" / "latest" / str(newest)
    largest = max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)

    errors = go_on(programs, workdir, finished)
    warnings = [line for line in errors.splitlines() if "falling back to the checkpoint before it" in line]
    assert len(warnings) == 1 and str(folder) in warnings[0] and largest.name in warnings[0]
    assert f"resuming from step {step_before}:" in errors


def test_sigterm_while_users_are_ranked_loses_no_epoch(programs, finished):
    """A validation within a recommender phase follows an epoch that is saved nowhere else."""
    workdir = programs.folder / "terminated_ranking"
    flags = programs.train_flags(
        workdir, training__validate_every_epochs=1, training__checkpoint_every_steps=0, training__rounds=1
    )

    def ranking():
        # The first epoch's record is written just before its validation starts.
        path = workdir / "metrics.jsonl"
        records = map(json.loads, path.read_text().splitlines()) if path.exists() else []
        return any((record["phase"], record["split"]) == ("recommender", "train") for record in records)

    with programs.start("train", *flags) as process:
        wait_for(process, ranking)
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=DEADLINE)
    assert process.returncode == 0 and "stopped and saved" in output, errors
    assert newest_cursor(workdir)[:2] == (FIRST_RECOMMENDER, 1), "the epoch that had ended is lost"


def test_without_a_whole_checkpoint_a_run_begins_again_when_told_to_and_not_before(programs, finished):
    """The run that begins again is also one with the same seed from its first step."""
    workdir = programs.folder / "all_broken"
    shutil.copytree(finished.workdir, workdir)
    (workdir / "results.json").unlink()
    broken = sorted((workdir / "checkpoints" / "latest").iterdir())
    for folder in broken:
        (folder / "files.json").write_text("{")
    records = (workdir / "metrics.jsonl").read_text()
    error = the_error(programs.run("train", *programs.train_flags(workdir)))
    assert len(broken) == 2 and all(str(folder) in error for folder in broken)
    assert "--restart_without_checkpoint" in error
    assert (workdir / "metrics.jsonl").read_text() == records, "nothing is lost yet"
    again = programs.train(workdir, "--restart_without_checkpoint")
    assert "training from the beginning" in again.stderr and "resuming" not in again.stderr
    assert_same_run(workdir, finished)


def test_a_truncated_best_checkpoint_is_one_line(programs, finished):
    """The best state cannot be made again without training, so nothing else may take its place unnoticed."""
    workdir = programs.folder / "best_truncated"
    shutil.copytree(finished.workdir, workdir)
    (workdir / "results.json").unlink()
    folder = workdir / "checkpoints" / "best" / str(finished.results["selected"]["step"])
    largest = max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)
    error = the_error(programs.run("train", *programs.train_flags(workdir)))
    assert str(folder) in error


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own, with 1 MB; skips where this user may not mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"mounting needs privileges: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_is_one_line_and_the_run_goes_on_once_there_is_room(programs, finished, small_disk):
    workdir = small_disk / "run"
    full = programs.run("train", *programs.train_flags(workdir, **EVERY_STEP))
    assert full.returncode == 2 and "Traceback" not in full.stderr, full.stderr
    errors = [line for line in full.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and re.search(r"no space left on the disk.*free some", errors[0]), full.stderr
    assert str(small_disk) in errors[0]

    subprocess.run(["mount", "-o", "remount,size=50m", small_disk], check=True)
    programs.train(workdir, **EVERY_STEP)
    assert_same_run(workdir, finished)
