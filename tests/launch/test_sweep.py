"""The program launch.sweep with its local engine: real trials that are stopped, killed, orphaned, wrong, and go on."""

import csv
import json
import os
import re
import shutil
import signal
import time

import numpy as np
import pytest
from program_runs import DEADLINE, read_records, the_error, tiny_flags

from idgenrec_jax.evaluation.significance import read_gains

SWEEP = """
from idgenrec_jax.sweeps.definition import Choice, LogUniform, chain, grid, with_seeds

def sweep():
    return chain(with_seeds(grid({"ids.table": ["ids.jsonl"]}), [0, 1]), [{"ids.table": "nowhere.txt"}])

def space():
    return {"training.recommender_learning_rate": LogUniform(1e-3, 1e-1), "training.order": Choice(("id_first",))}
"""


@pytest.fixture(scope="module")
def folder(programs, finished):
    """A working directory with a sweep's file and the IDs it names; the trials need no ID phase of their own."""
    folder = programs.folder / "sweeps"
    folder.mkdir()
    (folder / "mine.py").write_text(SWEEP)
    shutil.copyfile(finished.workdir / "ids" / "round_2.jsonl", folder / "ids.jsonl")
    return folder


def flags_of(programs, sweep, output, **more):
    sizes = tiny_flags(training__rounds=1, training__id_epochs=0, training__validate_every_epochs=1, **more)
    data = [f"--data={programs.data}", f"--config.data.tokenizer={programs.tokenizer}"]
    return [f"--sweep={sweep}", f"--output={output}", *data, *sizes]


def run_of(output, number):
    return output / f"trial_{number:05d}" / "run"


def wait_for(path, process):
    deadline = time.monotonic() + DEADLINE
    while not path.exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.slow
def test_a_sweep_that_is_stopped_and_killed_goes_on_and_records_what_fails(programs, folder):
    output = folder / "output"
    flags = flags_of(programs, "mine.py", "output")
    # One trial by itself, as an array job runs it, is asked to stop.
    with programs.start("sweep", *flags, "--trial=0", cwd=folder) as process:
        wait_for(run_of(output, 0) / "config.json", process)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=DEADLINE)
    assert process.returncode == 75, errors
    assert "stopped and saved" in (output / "trial_00000" / "log.txt").read_text()

    # The driver of all is killed, and does not take its trial along.
    with programs.start("sweep", *flags, "--at_once=2", cwd=folder) as process:
        wait_for(run_of(output, 1) / "config.json", process)
        process.kill()
        process.communicate()
    holder = (output / "trial_00001" / "lock").read_text()
    orphan = int(re.match(r"process (\d+) on ", holder).group(1))
    os.kill(orphan, signal.SIGSTOP)

    # From another folder, and with nothing but the sweep's own.
    with programs.start("sweep", f"--output={output}", "--at_once=2") as process:
        for line in process.stderr:
            if f"trial 1 is being run by {holder.strip()}" in line:
                break
        os.kill(orphan, signal.SIGCONT)
        printed, errors = process.communicate(timeout=DEADLINE)
    assert process.returncode == 0, errors
    for number, processes in ((0, 2), (1, 1)):
        log = (output / f"trial_{number:05d}" / "log.txt").read_text()
        assert log.count("ready to train after") == processes
    failure = json.loads((output / "trial_00002" / "error.json").read_text())
    assert failure["exit_code"] == 2 and "nowhere.txt" in failure["error"] and failure["error"] in printed
    with open(output / "summary.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["status"] for row in rows] == ["finished", "finished", "failed"]
    for number in range(2):
        found = json.loads((run_of(output, number) / "results.json").read_text())
        assert float(rows[number]["validation ndcg@10"]) == found["validation"]["ndcg@10"]
        gains = list(read_gains(run_of(output, number)).values())
        assert np.mean(gains) == pytest.approx(found["validation"]["ndcg@10"]), "the comparison is of another metric"
    assert "2 of 2" in printed and "+-" in printed

    before = {path: path.stat().st_mtime_ns for path in output.rglob("results.json")}
    assert programs.run("sweep", f"--output={output}", "--trial=1").returncode == 0
    failed = programs.run("sweep", f"--output={output}", "--trial=2")
    assert failed.returncode == 1 and "nowhere.txt" in failed.stderr.splitlines()[-1]
    again = programs.run("sweep", f"--output={output}", "--summary")
    assert again.returncode == 0 and again.stdout == printed
    assert before == {path: path.stat().st_mtime_ns for path in output.rglob("results.json")}


@pytest.mark.slow
def test_an_adaptive_search_trains_and_is_told_the_validations(programs, folder):
    optuna = pytest.importorskip("optuna")
    output = folder / "search"
    flags = [*flags_of(programs, folder / "mine.py", output), f"--config.ids.table={folder / 'ids.jsonl'}"]
    flags += ["--sampler=tpe", "--trials=2", "--at_once=2"]
    flags.remove("--config.training.order=id_first")
    result = programs.run("sweep", *flags)
    assert result.returncode == 0, result.stderr
    name = json.loads((output / "sweep.json").read_text())["study"]
    told = optuna.load_study(study_name=name, storage=f"sqlite:///{output / 'study.db'}").trials
    assert [frozen.state.name for frozen in told] == ["COMPLETE"] * 2
    for frozen in told:
        records = [record for record in read_records(run_of(output, frozen.number)) if record["split"] == "validation"]
        assert list(frozen.intermediate_values.values()) == [record["ndcg@10"] for record in records]
        assert frozen.value == max(frozen.intermediate_values.values())
    assert "recommender_learning_rate" in result.stdout
    error = the_error(programs.run("sweep", f"--output={output}"))
    assert "an adaptive search; give --sweep, --sampler and --trials again" in error


def test_mistakes_are_one_line(programs, tmp_path):
    for flags, message in (
        (["--sweep=altenation"], "alternation, cluster_words"),
        (["--summary"], "expected the --output of a run of launch.sweep"),
        (["--sweep=order", "--trials=3"], "--trials=3: expected with --sampler only"),
        (["--trial=0", "--preset=tiny"], "--sweep: expected a file or one of the named sweeps"),
    ):
        assert message in the_error(programs.run("sweep", f"--output={tmp_path}", *flags))
