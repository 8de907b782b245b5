"""The Slurm engine: what its scripts say, and what a real Slurm makes of them, with jobs that are held back."""

import json
import os
import re
import subprocess
import sys

import pytest
from slurm_cluster import MAX_ARRAY_SIZE

from idgenrec_jax.errors import InputError
from idgenrec_jax.sweeps.engine_options import SlurmOptions
from idgenrec_jax.sweeps.slurm import index_ranges, queued_trials, submit_unfinished, write_array_jobs
from idgenrec_jax.sweeps.trials import make_trial

HELD = SlurmOptions(max_array_size=MAX_ARRAY_SIZE, arguments="--hold")


def trials_in(output, count):
    return [make_trial(output, index, {}, []) for index in range(count)]


def array_of(job_id):
    """The array as Slurm has it: what the queue shows in brackets."""
    command = ["squeue", "--noheader", "--format=%i", f"--jobs={job_id},{job_id}"]
    return re.search(r"\[(.*)\]", subprocess.run(command, capture_output=True, text=True, check=True).stdout)[1]


@pytest.mark.parametrize(
    "indices, text", [([4], "4"), ([7, 6, 5, 0, 2], "0,2,5-7"), (range(1000), "0-999"), ([0, 1, 3, 4], "0-1,3-4")]
)
def test_index_ranges(indices, text):
    assert index_ranges(indices) == text


def test_a_script_asks_for_what_was_asked_for_and_nothing_else(tmp_path):
    (job,) = write_array_jobs([0, 2], tmp_path, SlurmOptions(), at_once=None)
    asked = re.findall(r"^#SBATCH --([a-z-]+)", job.script.read_text(), re.MULTILINE)
    assert not {"partition", "account", "time", "cpus-per-task", "mem", "gres"} & set(asked)
    assert "#SBATCH --array=0,2\n" in job.script.read_text()

    options = SlurmOptions(partition="p", account="a", time="1-0", cpus=3, memory="4G", gpus="a100:2", save_seconds=9)
    text = write_array_jobs([0, 2], tmp_path, options, at_once=5)[0].script.read_text()
    for wanted in ("partition=p", "account=a", "time=1-0", "cpus-per-task=3", "mem=4G", "gres=gpu:a100:2"):
        assert f"#SBATCH --{wanted}\n" in text
    assert "#SBATCH --array=0,2%5\n" in text and "#SBATCH --signal=B:TERM@9\n" in text


def test_a_task_runs_the_trial_of_its_index_as_its_own_process(tmp_path, monkeypatch):
    """`python` is a program that tells its arguments and its process, to which alone --signal=B: is sent."""
    python = tmp_path / "py thon"
    python.write_text(f"#!{sys.executable}\nimport os, sys\nprint(os.getpid(), *sys.argv[1:], sep='\\n')\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    output = tmp_path / "it's mine"
    (job,) = write_array_jobs([1007], output, SlurmOptions())
    environment = os.environ | {"SLURM_ARRAY_TASK_ID": "6"}
    with subprocess.Popen(["bash", job.script], env=environment, stdout=subprocess.PIPE, text=True) as process:
        told = process.communicate()[0].splitlines()
    assert told == [str(process.pid), "-m", "idgenrec_jax.launch.sweep", f"--output={output}", "--trial=1007"]


@pytest.mark.parametrize("content", ["[]", '{"5": "x"}'])
def test_an_edited_list_of_jobs_is_one_line(tmp_path, content):
    (tmp_path / "slurm").mkdir()
    (tmp_path / "slurm" / "jobs.json").write_text(content)
    with pytest.raises(InputError, match="jobs.json: expected .*; delete it once none of its jobs is in the queue"):
        queued_trials(tmp_path)


def test_without_slurm_the_error_names_the_script_that_was_written(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="sbatch: no such program here.*/slurm/job_00000.sh$"):
        submit_unfinished(trials_in(tmp_path, 2), tmp_path, SlurmOptions(), None)
    assert (tmp_path / "slurm" / "job_00000.sh").exists()


def test_more_trials_than_an_array_can_hold_are_several_jobs_and_only_dead_ones_are_submitted_again(slurm, tmp_path):
    trials = trials_in(tmp_path, 10)
    for finished in (1, 4, 6, 7):
        trials[finished].workdir.mkdir(parents=True)
        (trials[finished].workdir / "results.json").touch()
    unfinished = {0, 2, 3, 5, 8, 9}

    jobs = submit_unfinished(trials, tmp_path, HELD, None)
    assert [array_of(job) for job in jobs] == ["0,2-3", "1", "0-1"]
    assert json.loads((tmp_path / "slurm" / "jobs.json").read_text()) == dict(zip(jobs, (0, 4, 8), strict=True))
    assert queued_trials(tmp_path) == unfinished
    assert submit_unfinished(trials, tmp_path, HELD, None) == []

    subprocess.run(["scancel", f"{jobs[0]}_2", jobs[1]], check=True)
    assert queued_trials(tmp_path) == unfinished - {2, 5}
    again = submit_unfinished(trials, tmp_path, HELD, None)
    assert [array_of(job) for job in again] == ["2", "1"]
    assert queued_trials(tmp_path) == unfinished


def test_refusals_are_in_slurms_words(slurm, tmp_path, monkeypatch):
    too_large = SlurmOptions(max_array_size=MAX_ARRAY_SIZE + 1, arguments="--hold")
    with pytest.raises(InputError, match="^sbatch .*job_00000.sh: sbatch: error: .*Invalid job array specification$"):
        submit_unfinished(trials_in(tmp_path, 5), tmp_path, too_large, None)
    submit_unfinished(trials_in(tmp_path, 4), tmp_path, HELD, None)
    (tmp_path / "slurm.conf").write_text("Nonsense=1\n")
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "slurm.conf"))
    with pytest.raises(InputError, match="^squeue .*Nonsense"):
        submit_unfinished(trials_in(tmp_path, 4), tmp_path, HELD, None)
