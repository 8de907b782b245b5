"""The program launch.sweep with its Slurm engine, on a real cluster: trials that wait, end, fail and are cut off."""

import json
import subprocess
import time

import pytest
from program_runs import DEADLINE, NUM_ITEMS, tiny_flags

pytestmark = pytest.mark.slow

# Trials 0 and 1 are the same, so that one that was cut off can be compared with one that was not.
SWEEP = '''
def sweep():
    return [{"training.seed": 3}, {"training.seed": 3}, {"ids.table": "nowhere.txt"}]
'''
# Only the recommender is trained, on given IDs: few programs to compile; and long enough to be cut off.
LENGTH = {"training__rounds": 1, "training__id_epochs": 0, "training__recommender_epochs": 50}


def ask(*command):
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def queue():
    """The tasks that wait or run, as JOB_INDEX."""
    return ask("squeue", "--array", "--noheader", "--format=%F_%K").split()


def wait_until(reached, *, poll_seconds=0.02):
    deadline = time.monotonic() + DEADLINE
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(poll_seconds)


def test_trials_in_the_queue_are_left_alone_and_dead_ones_go_on(slurm, programs, tmp_path, monkeypatch):
    # Programs that are quick to compile; sbatch hands the environment on.
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")
    path, ids, output = tmp_path / "mine.py", tmp_path / "ids.txt", tmp_path / "it's 100% mine"
    path.write_text(SWEEP)
    ids.write_text("".join(f"item{number} {number}\n" for number in range(NUM_ITEMS)))
    workdirs = [output / f"trial_{number:05d}" / "run" for number in range(3)]
    shared = [f"--data={programs.data}", f"--config.data.tokenizer={programs.tokenizer}", f"--config.ids.table={ids}"]
    asked = ["--slurm.cpus=1", "--slurm.gpus=1", "--slurm.memory=1G", "--slurm.time=30", "--slurm.partition=main"]

    def sweep(*more):
        flags = [f"--sweep={path}", f"--output={output}", "--engine=slurm", *shared, *tiny_flags(**LENGTH), *asked]
        result = programs.run("sweep", *flags, *more)
        assert result.returncode == 0, result.stderr
        return result.stdout

    assert "submitted the jobs 1" in sweep("--slurm.arguments=--hold --comment='two words'", "--at_once=1")
    assert queue() == ["1_0", "1_1", "1_2"]
    job = ask("scontrol", "show", "job", "1")
    for wanted in ("ArrayTaskThrottle=1", "TimeLimit=00:30:00", "gres:gpu:1", "MinMemoryNode=1G", "Comment=two words"):
        assert wanted in job
    assert "nothing to submit" in sweep(), "trials that wait are submitted twice"
    assert queue() == ["1_0", "1_1", "1_2"]

    ask("scontrol", "release", "1")
    records = workdirs[1] / "metrics.jsonl"
    wait_until(lambda: records.exists() and records.stat().st_size > 0)
    ask("scancel", "1_1")
    wait_until(lambda: not queue(), poll_seconds=0.5)
    assert not (workdirs[1] / "results.json").exists(), "finished before it was cut off"
    assert "stopped and saved" in (workdirs[1].parent / "log.txt").read_text()
    assert not (workdirs[1].parent / "error.json").exists(), "cut off is not failed"
    failure = json.loads((workdirs[2].parent / "error.json").read_text())
    assert failure["exit_code"] == 2 and "nowhere.txt" in failure["error"]
    undisturbed = (workdirs[0] / "results.json").read_bytes()

    # Trial 0 is finished, so the array of the new job has only the other two; that trial 2 fails again is known.
    assert "submitted the jobs" in sweep("--slurm.arguments=--hold")
    cut_off, failed = queue()
    assert cut_off.endswith("_1") and failed.endswith("_2")
    ask("scancel", failed)
    ask("scontrol", "release", cut_off)
    wait_until(lambda: not queue(), poll_seconds=0.5)
    assert "resuming from step" in (workdirs[1].parent / "log.txt").read_text()
    results = [json.loads((workdir / "results.json").read_text()) for workdir in workdirs[:2]]
    for block in ("validation", "test", "selected", "example_ids"):
        assert results[0][block] == results[1][block], block
    assert (workdirs[0] / "results.json").read_bytes() == undisturbed
