"""A stand-in for launch.train that takes milliseconds: these tests are about processes, locks and Optuna.

Its recommender learning rate is also its validation metric. tests/launch/test_sweep.py runs the real program.
"""

import pytest

from idgenrec_jax.sweeps import local

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


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """A driver's working directory, in which launch.train is the stand-in; trials wait while it has a file `hold`."""
    folder = tmp_path / "launch"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "train.py").write_text(STAND_IN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(local, "_POLL_SECONDS", 0.02)
    return tmp_path
