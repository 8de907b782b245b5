"""The local engine: pinning, failures, stopping, and that no trial ever has two processes."""

import json
import os
import subprocess
import sys

import pytest
from stand_in_training import RATE, starts, wait_until

from idgenrec_jax.errors import InputError
from idgenrec_jax.files import write_json
from idgenrec_jax.sweeps.local import ListedTrials, Slot, available_cores, make_slots, run_locally
from idgenrec_jax.sweeps.trials import BEGUN, FAILED, FINISHED, claim_sweep, trials_of


def never():
    return False


def sweep_of(folder, rates):
    output = folder / "sweep"
    claim_sweep(output, name="rates", trials=[{RATE: rate} for rate in rates], config={}, preset=None)
    return trials_of(output)


def test_slots_share_out_cores_and_devices():
    assert make_slots(2, cores=[0, 1, 2, 5], devices=["0", "3"]) == [Slot((0, 2), ("0",)), Slot((1, 5), ("3",))]
    assert [slot.cores for slot in make_slots(3, cores=[4, 6])] == [(4,), (6,), (4,)]
    shared = make_slots(3, cores=[0], devices=["0", "1"])
    assert [(slot.devices, slot.sharers) for slot in shared] == [(("0",), 2), (("1",), 1), (("0",), 2)]
    assert "XLA_PYTHON_CLIENT_MEM_FRACTION" not in make_slots(1, cores=[0])[0].environment()


def test_trials_have_the_cores_and_devices_of_their_slots(stand_in, monkeypatch):
    monkeypatch.delenv("XLA_PYTHON_CLIENT_MEM_FRACTION", raising=False)
    cores = available_cores()
    slots = make_slots(2, cores=cores, devices=["7"])
    trials = sweep_of(stand_in, [0.1, 0.2])
    (stand_in / "hold").touch()

    def release():
        # Once both have started, so that each takes a slot of its own.
        if all(map(starts, trials)):
            (stand_in / "hold").unlink(missing_ok=True)
        return False

    run_locally(ListedTrials(trials), slots, should_stop=release)
    found = [starts(trial)[0] for trial in trials]
    assert [tuple(one["cores"]) for one in found] == [slot.cores for slot in slots]
    assert {one["devices"] for one in found} == {"7"} and {one["memory"] for one in found} == {"0.450"}
    assert available_cores() == cores, "the driver itself is not pinned"


def test_failures_are_recorded_and_tried_again_and_the_rest_is_not(stand_in):
    trials = sweep_of(stand_in, [0.1, 13, 9, 0.2])
    for attempt in (1, 2):
        run_locally(ListedTrials(trials), make_slots(1, cores=available_cores()), should_stop=never)
        assert [trial.status for trial in trials] == [FINISHED, FAILED, FAILED, FINISHED]
        assert [len(starts(trial)) for trial in trials] == [1, attempt, attempt, 1]
    error = json.loads((trials[1].folder / "error.json").read_text())
    assert error == {
        "error": "thirteen is too much", "exit_code": 1, "last_lines": ["a warning", "error: thirteen is too much"]
    }  # fmt: skip
    assert "killed by SIGKILL" in trials[2].failure()


def test_a_stop_reaches_the_trials_and_begins_no_other(stand_in):
    trials = sweep_of(stand_in, [0.1, 0.2])
    (stand_in / "hold").touch()
    run_locally(ListedTrials(trials), make_slots(1, cores=[]), should_stop=lambda: bool(starts(trials[0])))
    assert trials[0].status == BEGUN and not trials[1].folder.exists()
    assert not (trials[0].folder / "error.json").exists()
    (stand_in / "hold").unlink()
    run_locally(ListedTrials(trials), make_slots(1, cores=[]), should_stop=never)
    assert [trial.status for trial in trials] == [FINISHED, FINISHED] and len(starts(trials[0])) == 2


def test_a_trial_that_outlived_its_driver_is_waited_for(stand_in):
    """Its process inherits the lock, so that it is held for as long as the process lives."""
    (trial,) = sweep_of(stand_in, [0.1])
    (stand_in / "hold").touch()
    descriptor = trial.hold()
    process = subprocess.Popen(trial.command(), pass_fds=[descriptor])
    os.close(descriptor)
    wait_until(lambda: starts(trial))
    assert trial.hold() is None
    queue = ListedTrials([trial])
    assert queue.take() is None and not queue.is_empty()
    (stand_in / "hold").unlink()
    run_locally(queue, make_slots(1, cores=[]), should_stop=never)
    assert trial.status == FINISHED and len(starts(trial)) == 1 and process.wait() == 0


@pytest.mark.parametrize(
    "found",
    [[], {}, {"flags": []}, {"flags": [1], "trials": []}, {"flags": [], "trials": [3]}, {"flags": [], "space": {}}],
)
def test_an_edited_sweep_is_one_line(tmp_path, found):
    write_json(tmp_path / "sweep.json", found)
    with pytest.raises(InputError, match=f"^{tmp_path}/sweep.json: .*; restore the file, or name another --output"):
        trials_of(tmp_path)
    (trial,) = sweep_of(tmp_path, [0.1])
    trial.workdir.mkdir(parents=True)
    write_json(trial.workdir / "results.json", {"validation": {"ndcg@10": "high"}, "seconds": 1.0})
    with pytest.raises(InputError, match="results.json: validation.ndcg@10 is 'high', expected int or float; delete"):
        trial.results()


def test_paths_mean_the_same_from_every_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ids.txt").touch()
    for name in ("sample", "shop", "train", "train:600"):
        (tmp_path / name).mkdir()
    trials = [{"ids.table": "ids.txt"}, {"ids.table": "nowhere.txt"}, {"data.path": "sample"}]
    trials += [{"data.tokenizer": "train"}, {"data.tokenizer": "train:600"}]
    claim_sweep(tmp_path / "out", name="paths", trials=trials, config={"data.path": "shop"}, preset="tiny")
    monkeypatch.chdir("/")
    found = trials_of(tmp_path / "out")
    assert [trial.overrides for trial in found] == [{"ids.table": f"{tmp_path}/ids.txt"}, *trials[1:]]
    assert found[0].flags == ("--preset=tiny", f"--config.data.path={tmp_path}/shop")
    assert found[0].command() == [
        sys.executable, "-m", "idgenrec_jax.launch.train", f"--workdir={tmp_path}/out/trial_00000/run", *found[0].flags,
        f"--config.ids.table={tmp_path}/ids.txt",
    ]  # fmt: skip


def test_a_sweep_may_grow_but_not_change(tmp_path):
    def claim(rates, **more):
        trials = [{RATE: rate} for rate in rates]
        claim_sweep(tmp_path, name="rates", trials=trials, **({"config": {}, "preset": None} | more))
        return len(trials_of(tmp_path))

    assert claim([1.0, 2.0]) == 2 and claim([1.0, 2.0]) == 2 and claim([1.0, 2.0, 3.0]) == 3
    for rates, more in (([2.0, 1.0, 3.0], {}), ([1.0], {}), ([1.0, 2.0, 3.0], {"preset": "tiny"})):
        with pytest.raises(ValueError, match="name another --output"):
            claim(rates, **more)
