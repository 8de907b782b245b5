"""A stand-in for launch.train that takes milliseconds, for tests of processes, locks and Optuna.

Its recommender learning rate is also its validation metric; it waits while its working directory has a file `hold`.
tests/launch/test_sweep.py runs the real program.
"""

import json
import time

RATE = "training.recommender_learning_rate"

STAND_IN = '''
import json, os, signal, sys, time
from pathlib import Path

signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
flags = dict(argument[2:].split("=", 1) for argument in sys.argv[1:])
workdir, rate = Path(flags["workdir"]), float(flags["config.training.recommender_learning_rate"])
workdir.mkdir(parents=True, exist_ok=True)
start = {"pid": os.getpid(), "cores": sorted(os.sched_getaffinity(0)),
         "devices": os.environ.get("CUDA_VISIBLE_DEVICES"), "memory": os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION")}
with open(workdir / "starts.jsonl", "a") as file:
    file.write(json.dumps(start) + "\\n")
(workdir / "config.json").write_text("{}")
if rate == 13:
    print("a warning")
    sys.exit("error: thirteen is too much")
if rate == 9:
    os.kill(os.getpid(), signal.SIGKILL)
with open(workdir / "metrics.jsonl", "w") as file:
    for split in ("train", "validation", "validation"):
        file.write(json.dumps({"split": split, "ndcg@10": rate}) + "\\n")
while Path("hold").exists():
    time.sleep(0.02)
metrics = {"ndcg@10": rate}
(workdir / "results.json").write_text(json.dumps({"validation": metrics, "test": metrics, "seconds": 1.0}))
'''


def starts(trial):
    """What each process of a trial wrote down when it started: pid, cores, devices, memory."""
    path = trial.workdir / "starts.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def wait_until(reached):
    deadline = time.monotonic() + 60
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.01)
