"""The program launch.sweep with its local engine: real trials, of which one fails and one is cut off."""

import csv
import json
import signal
import time

import pytest
from program_runs import the_error, tiny_flags

pytestmark = pytest.mark.slow

SWEEP = '''
from idgenrec_jax.sweeps.definition import chain, grid, with_seeds

def sweep():
    return chain(
        with_seeds(grid({"training.recommender_learning_rate": [1e-2, 1e-3]}), [0, 1]),
        [{"ids.table": "nowhere.txt"}],
    )
'''


def sweep_flags(programs, output, path):
    data = [f"--data={programs.data}", f"--config.data.tokenizer={programs.tokenizer}"]
    return [f"--sweep={path}", f"--output={output}", *data, *tiny_flags(training__rounds=1)]


def test_a_sweep_survives_a_failure_and_a_stop_and_goes_on(programs, tmp_path):
    path, output = tmp_path / "mine.py", tmp_path / "sweep"
    path.write_text(SWEEP)
    process = programs.start("sweep", *sweep_flags(programs, output, path))
    # Two trials begin at once; the sweep is stopped while they train.
    while not (output / "trial_00000" / "run" / "metrics.jsonl").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert not (output / "trial_00004").exists()

    result = programs.run("sweep", *sweep_flags(programs, output, path))
    assert result.returncode == 0, result.stderr
    failure = json.loads((output / "trial_00004" / "error.json").read_text())
    assert failure["exit_code"] == 2 and "nowhere.txt" in failure["last_lines"][-1]
    with open(output / "summary.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["status"] for row in rows] == ["finished"] * 4 + ["failed"]
    for number in range(4):
        found = json.loads((output / f"trial_{number:05d}" / "run" / "results.json").read_text())
        assert float(rows[number]["validation ndcg@10"]) == found["validation"]["ndcg@10"]

    # A trial by itself, elsewhere, is the same trial.
    alone = tmp_path / "alone"
    result = programs.run("sweep", *sweep_flags(programs, alone, path), "--trial=1")
    assert result.returncode == 0, result.stderr
    results = [json.loads((folder / "trial_00001/run/results.json").read_text()) for folder in (output, alone)]
    assert results[0]["validation"] == results[1]["validation"] and results[0]["test"] == results[1]["test"]

    begun = {path: path.stat().st_mtime_ns for path in output.rglob("results.json")}
    again = programs.run("sweep", f"--output={output}", "--summary")
    assert again.returncode == 0 and "2 of 2" in again.stdout and "+-" in again.stdout
    assert begun == {path: path.stat().st_mtime_ns for path in output.rglob("results.json")}


def test_mistakes_are_one_line(programs, tmp_path):
    assert "alternation, order" in the_error(programs.run("sweep", f"--output={tmp_path}", "--sweep=altenation"))
    assert "expected the --output of a run of launch.sweep" in the_error(
        programs.run("sweep", f"--output={tmp_path}", "--summary")
    )
