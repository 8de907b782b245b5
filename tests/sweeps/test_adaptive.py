"""Adaptive search through the local engine: what Optuna is told, pruning, and drivers that die."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from stand_in_training import RATE, starts, wait_until

from idgenrec_jax.errors import InputError
from idgenrec_jax.presets import preset
from idgenrec_jax.sweeps.adaptive import StudyTrials, claim_search, public_storage
from idgenrec_jax.sweeps.definition import Choice, LogUniform, Uniform, load_space
from idgenrec_jax.sweeps.local import make_slots, run_locally
from idgenrec_jax.sweeps.trials import FAILED, FINISHED, PRUNED, trials_of

optuna = pytest.importorskip("optuna")

ROOT = Path(__file__).resolve().parents[2]
SPACE = {RATE: Uniform(0.0, 1.0), "training.rounds": Uniform(1, 3), "data.user_ids": Choice(("none", "train_history"))}
SETTINGS = {"sampler": "tpe", "storage": ""}


def queue_of(output, count, *, pruner="none", seed=0, space=SPACE, storage=None):
    claim_search(output, name="space.py", space=space, config={}, preset=None, settings=SETTINGS)
    storage = storage or f"sqlite:///{output.resolve() / 'study.db'}"
    return StudyTrials(output, space, count=count, storage=storage, pruner=pruner, seed=seed)


def search(output, count, *, at_once=1, **more):
    deadline = time.monotonic() + 120
    slots = make_slots(at_once, cores=[])
    run_locally(queue_of(output, count, **more), slots, should_stop=lambda: time.monotonic() > deadline)
    return trials_of(output)


def study_of(output, storage=None):
    name = json.loads((output / "sweep.json").read_text())["study"]
    return optuna.load_study(study_name=name, storage=storage or f"sqlite:///{output.resolve() / 'study.db'}")


def test_a_search_that_goes_on_is_the_search_that_was_not_interrupted(stand_in):
    search(stand_in / "parts", 3)
    parts, whole = search(stand_in / "parts", 5), search(stand_in / "whole", 5)
    assert [trial.overrides for trial in parts] == [trial.overrides for trial in whole]
    assert len({trial.overrides[RATE] for trial in whole}) == 5
    assert [len(starts(trial)) for trial in parts] == [1] * 5
    assert search(stand_in / "other", 1, seed=1)[0].overrides != whole[0].overrides
    told = study_of(stand_in / "parts").trials
    assert [frozen.value for frozen in told] == [trial.overrides[RATE] for trial in parts]
    assert all(frozen.intermediate_values == {0: frozen.value, 1: frozen.value} for frozen in told)
    for trial in whole:
        assert 0 <= trial.overrides[RATE] <= 1 and trial.overrides["training.rounds"] in (1, 2, 3)
        assert f"--config.data.user_ids={trial.overrides['data.user_ids']}" in trial.command()


def test_a_hopeless_trial_is_pruned_and_a_failed_one_told(stand_in):
    output, space = stand_in / "sweep", {RATE: LogUniform(0.1, 20.0)}
    queue_of(output, 1, space=space)
    study = study_of(output)
    for rate in (0.5, 0.6, 0.7, 0.8, 13, 0.9):
        study.enqueue_trial({RATE: rate})
    trials = search(output, 6, at_once=2, space=space, pruner="median")
    assert sorted(trial.status for trial in trials) == [FAILED] + [FINISHED] * 5
    (stand_in / "hold").touch()  # Without an end of its own, so that pruning alone can end it.
    study.enqueue_trial({RATE: 0.2})
    hopeless = search(output, 7, space=space, pruner="median")[6]
    assert hopeless.status == PRUNED and hopeless.overrides == {RATE: pytest.approx(0.2)}
    states = [frozen.state.name for frozen in study.trials]
    assert sorted(states[:6]) == ["COMPLETE"] * 5 + ["FAIL"] and states[6] == "PRUNED"
    assert not (hopeless.workdir / "results.json").exists() and not (hopeless.folder / "error.json").exists()
    assert json.loads((hopeless.folder / "pruned.json").read_text()) == {"validation ndcg@10": [0.2, 0.2]}
    assert search(output, 7, space=space, pruner="median")[6].status == PRUNED, "it is not begun again"


DRIVER = """
from test_adaptive import search
from pathlib import Path
from idgenrec_jax.sweeps import trials

trials.TRAIN_PROGRAM = "launch.train"
search(Path("sweep"), 3, at_once=2)
"""


def test_after_a_killed_driver_its_trials_go_on_under_their_numbers(stand_in):
    """One of its two processes lives on and is waited for; the other is killed as well and starts again."""
    output = stand_in / "sweep"
    (stand_in / "hold").touch()
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests" / "sweeps")])}
    driver = subprocess.Popen([sys.executable, "-c", DRIVER], env=environment)
    wait_until(lambda: len(list(output.glob("trial_*/run/config.json"))) == 2)
    driver.kill()
    driver.wait()
    before = trials_of(output)
    os.kill(starts(before[1])[0]["pid"], signal.SIGKILL)
    queue = queue_of(output, 3)
    (trial, descriptor), new = queue.take(), queue.take()
    assert trial.index == 1 and new[0].index == 2 and queue.take() is None and not queue.is_empty()
    os.close(descriptor)
    os.close(new[1])

    (stand_in / "hold").unlink()
    trials = search(output, 3)
    assert [trial.status for trial in trials] == [FINISHED] * 3
    assert [trial.overrides for trial in trials[:2]] == [trial.overrides for trial in before]
    assert [len(starts(trial)) for trial in trials] == [1, 2, 1]
    told = study_of(output).trials
    assert [frozen.value for frozen in told] == [trial.overrides[RATE] for trial in trials]


def test_two_drivers_share_a_journal(stand_in):
    """The storage for machines that share a folder and no database."""
    output, storage = stand_in / "sweep", f"journal:{stand_in / 'journal.log'}"
    first, second = (queue_of(output, 4, storage=storage) for _ in range(2))
    taken = [queue.take() for queue in (first, second, first, second)]
    assert [trial.index for trial, _ in taken] == [0, 1, 2, 3] and first.take() is second.take() is None
    for _, descriptor in taken:
        os.close(descriptor)
    assert [trial.status for trial in search(output, 4, storage=storage)] == [FINISHED] * 4


def test_what_can_be_wrong(tmp_path, monkeypatch):
    queue_of(tmp_path / "sweep", 1)
    with pytest.raises(InputError, match="made with space .* name another --output"):
        queue_of(tmp_path / "sweep", 1, space={RATE: Uniform(0.0, 2.0)})
    with pytest.raises(InputError, match="--storage=sqlite:////nowhere/study.db: cannot be used"):
        queue_of(tmp_path / "sweep", 1, storage="sqlite:////nowhere/study.db")
    queue = queue_of(tmp_path / "sweep", 1)
    trial, descriptor = queue.take()
    trial.workdir.mkdir()
    (trial.workdir / "metrics.jsonl").write_bytes(b"\xff\n")
    with pytest.raises(InputError, match=r"metrics.jsonl: not the records of a run .*; delete .*trial_00000"):
        queue.should_prune(trial)
    os.close(descriptor)
    # A folder whose study is gone.
    (trial.folder / "overrides.json").write_text("{}")
    with pytest.raises(InputError, match="not what the study has for trial 0"):
        queue_of(tmp_path / "sweep", 1).take()
    assert public_storage("postgresql://me:secret@host/data") == "postgresql://me:***@host/data"
    with pytest.raises(InputError, match="expected an address"):
        public_storage("study.db")
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(InputError, match="pip install 'optuna>=5'$"):
        queue_of(tmp_path / "sweep", 1)


def test_a_space_is_checked_before_anything_runs(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from idgenrec_jax.sweeps.definition import Choice, LogUniform, Uniform\n"
        "def space():\n    return {'training.rounds': Uniform(1, 3)}\n"
        "def misspelt():\n    return {'training.round': Uniform(1, 3)}\n"
        "def beyond():\n    return {'recommender.dropout_rate': Uniform(0.0, 1.5)}\n"
        "def strange():\n    return {'training.order': Choice(('id_first', 'both'))}\n"
        "def plain():\n    return {'training.rounds': [1, 3]}\n"
    )
    base = preset("tiny")
    assert load_space(str(path), base) == {"training.rounds": Uniform(1, 3)}
    for function, message in {
        "misspelt": "training.rounds",
        "beyond": "at most 0.95",
        "strange": "nearest",
        "plain": "Uniform, LogUniform or Choice",
        "missing": "has no function 'missing'",
    }.items():
        with pytest.raises(InputError, match=message):
            load_space(f"{path}:{function}", base)
