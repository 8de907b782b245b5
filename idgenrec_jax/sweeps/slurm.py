"""Trials as Slurm array jobs: their scripts, their submission, and which trials the queue still holds.

    slurm/job_00000.sh   the array job of the unfinished trials from 0 on; index i of the array is trial 0 + i
    slurm/job_01001.sh   and so on, where the cluster's MaxArraySize makes one array too small
    slurm/jobs.json      {job ID: the trial that index 0 of its array stands for}, of every job submitted
    slurm/JOB_INDEX.log  what a task of an array printed; the trial's own log is in its folder
"""

import dataclasses
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from absl import logging

from idgenrec_jax.errors import InputError
from idgenrec_jax.files import atomic_writer, read_json, write_json
from idgenrec_jax.sweeps.engine_options import SlurmOptions
from idgenrec_jax.sweeps.trials import FINISHED, Trial


@dataclasses.dataclass(frozen=True)
class ArrayJob:
    """A script for sbatch; index i of its array is trial `first_trial` + i."""

    script: Path
    first_trial: int
    trials: tuple[int, ...]


def submit_unfinished(trials: Sequence[Trial], output: Path, options: SlurmOptions, at_once: int | None) -> list[str]:
    """Write and submit the array jobs of all trials that are neither finished nor in the queue; return the job IDs.

    Raises:
        InputError: Slurm is not installed here (the scripts are written then, to be submitted elsewhere), or sbatch or
            squeue refuses, in Slurm's own words.
    """
    installed = shutil.which("sbatch") is not None
    queued = queued_trials(output) if installed else set()
    unfinished = [trial.index for trial in trials if trial.status != FINISHED]
    dead = [index for index in unfinished if index not in queued]
    if len(dead) < len(unfinished):
        logging.info("trials %s wait or run in the queue", index_ranges(set(unfinished) - set(dead)))
    jobs = write_array_jobs(dead, output, options, at_once)
    if jobs and not installed:
        scripts = " ".join(str(job.script) for job in jobs)
        raise InputError(f"sbatch: no such program here; written to be submitted on a machine that has it: {scripts}")
    return [submit(job, output) for job in jobs]


def write_array_jobs(
    indices: Sequence[int], output: Path, options: SlurmOptions, at_once: int | None = None
) -> list[ArrayJob]:
    """Write one script for every `max_array_size` trials of the sweep, with an array of exactly the `indices` of them.

    At most `at_once` tasks of one array run at a time. The tasks use this process's Python and working directory, and
    get its environment from sbatch.
    """
    folder = output.resolve() / "slurm"
    jobs = []
    for first in sorted({index - index % options.max_array_size for index in indices}):
        own = tuple(sorted(index for index in indices if first <= index < first + options.max_array_size))
        job = ArrayJob(folder / f"job_{first:05d}.sh", first, own)
        with atomic_writer(job.script) as file:
            file.write(_script(job, output.resolve(), options, at_once))
        jobs.append(job)
    return jobs


def submit(job: ArrayJob, output: Path) -> str:
    """Submit an array job, note it in slurm/jobs.json, and return its ID.

    Raises:
        InputError: sbatch refuses, in its own words.
    """
    # What sbatch prints is ID, or ID;CLUSTER where there are several clusters.
    job_id = _run_slurm("sbatch", "--parsable", str(job.script)).strip().partition(";")[0]
    write_json(_jobs_path(output), _submitted_jobs(output) | {job_id: job.first_trial})
    logging.info("job %s: trials %s; %s", job_id, index_ranges(job.trials), job.script)
    return job_id


def queued_trials(output: Path) -> set[int]:
    """Return the trials that wait or run as tasks of this user's jobs in slurm/jobs.json.

    Raises:
        InputError: squeue refuses, in its own words.
    """
    jobs = _submitted_jobs(output)
    if not jobs:
        return set()
    # Not --jobs=: squeue fails where it is given one job that Slurm has forgotten.
    queue = _run_slurm("squeue", "--me", "--array", "--noheader", "--format=%F %K")
    tasks = map(str.split, queue.splitlines())
    return {jobs[job_id] + int(index) for job_id, index in tasks if job_id in jobs}


def index_ranges(indices: Iterable[int]) -> str:
    """Return numbers as Slurm writes them: 0, 2, 5, 6, 7 as "0,2,5-7"."""
    ranges: list[list[int]] = []
    for index in sorted(indices):
        if ranges and index == ranges[-1][1] + 1:
            ranges[-1][1] = index
        else:
            ranges.append([index, index])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)


def _script(job: ArrayJob, output: Path, options: SlurmOptions, at_once: int | None) -> str:
    array = index_ranges(index - job.first_trial for index in job.trials) + (f"%{at_once}" if at_once else "")
    directives = {
        "job-name": f"sweep-{output.name}",
        "array": array,
        # A percent sign of a folder's own would begin a pattern such as %A.
        "output": f"{job.script.parent}/".replace("%", "%%") + "%A_%a.log",
        "open-mode": "append",
        "chdir": os.getcwd(),
        "nodes": "1",
        "ntasks": "1",
        "cpus-per-task": str(options.cpus or ""),
        "mem": options.memory,
        "gres": f"gpu:{options.gpus}" if options.gpus else "",
        "partition": options.partition,
        "account": options.account,
        "time": options.time,
        "signal": f"B:TERM@{options.save_seconds}",
    }
    command = shlex.join([sys.executable, "-m", "idgenrec_jax.launch.sweep", f"--output={output}"])
    lines = [
        "#!/bin/bash",
        *(f"#SBATCH --{name}={shlex.quote(value)}" for name, value in directives.items() if value),
        "#SBATCH --requeue",
        *([f"#SBATCH {options.arguments}"] if options.arguments else []),
        "# The shell becomes the trial, so that the signal to save, which the shell alone is sent, reaches it.",
        f'exec {command} --trial="$((SLURM_ARRAY_TASK_ID + {job.first_trial}))"',
    ]
    return "\n".join(lines) + "\n"


def _jobs_path(output: Path) -> Path:
    return output / "slurm" / "jobs.json"


def _submitted_jobs(output: Path) -> dict[str, int]:
    path = _jobs_path(output)
    if not path.exists():
        return {}
    remedy = "delete it once none of its jobs is in the queue"
    found = read_json(path, remedy=remedy, fields={})
    if not all(isinstance(first_trial, int) for first_trial in found.values()):
        raise InputError(f"{path}: expected a number of a trial for every job; {remedy}")
    return found


def _run_slurm(*command: str) -> str:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise InputError(f"{shlex.join(command)}: {'; '.join(result.stderr.strip().splitlines())}")
    return result.stdout
