"""Records in event files and in Weights & Biases: those of metrics.jsonl, each once, however often a run goes on."""

import importlib.util
import json
import re

import pytest

from idgenrec_jax.config import Config
from idgenrec_jax.errors import InputError
from idgenrec_jax.training.record_writers import check_writers, writer_makers
from idgenrec_jax.training.records import MetricsLog


def record(step, split="train_step", **values):
    return {"step": step, "round": 1, "phase": "id", "epoch": 1, "split": split, **values, "seconds": step / 2}


RECORDS = [
    record(2, loss=0.75),
    record(4, loss=0.5),
    record(4, "train", loss=0.625),
    record(4, "validation", loss=0.25, **{"ndcg@10": 0.125}),
    record(6, loss=0.375),
]


def open_log(workdir, records, name):
    writers = writer_makers([name], workdir, Config())
    return MetricsLog(workdir / "metrics.jsonl", records=records, writers=writers)


def events(workdir):
    """(tag, step, value) of every event, and the wall times."""
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import RecordWriter  # noqa: F401 (the format that is read below)

    found, times = [], []
    for path in sorted((workdir / "tensorboard").iterdir()):
        data, start = path.read_bytes(), 0
        while start < len(data):
            length = int.from_bytes(data[start : start + 8], "little")
            event = Event.FromString(data[start + 12 : start + 12 + length])
            start += 16 + length
            found += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
            times += [event.wall_time] * len(event.summary.value)
    return found, times


def scalars(records):
    return [
        (f"{record['split']}/{name}", record["step"], value)
        for record in records
        for name, value in record.items()
        if name not in ("step", "phase", "split")
    ]


def test_event_files_hold_every_record_once_after_resumes(tmp_path):
    with open_log(tmp_path, 0, "tensorboard") as log:
        for one in RECORDS[:4]:
            log.append(one)
    assert events(tmp_path)[0] == scalars(RECORDS[:4])
    # The last two records came after the checkpoint; the run is not ended in order the second time.
    open_log(tmp_path, 2, "tensorboard").append(RECORDS[2])
    with open_log(tmp_path, 2, "tensorboard") as log:
        for one in RECORDS[2:]:
            log.append(one)
    found, times = events(tmp_path)
    assert found == scalars(RECORDS)
    assert times[-1] - times[0] == pytest.approx(2.0), "events are as far apart as in training"


def test_event_files_of_a_run_that_had_none_begin_with_its_first_record(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in RECORDS))
    with open_log(tmp_path, 3, "tensorboard"):
        pass
    assert events(tmp_path)[0] == scalars(RECORDS[:3])


@pytest.mark.slow
def test_weights_and_biases_gets_every_record_once_after_resumes(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    workdir = tmp_path / "run"
    with open_log(workdir, 0, "wandb") as log:
        for one in RECORDS[:3]:
            log.append(one)
    with open_log(workdir, 1, "wandb") as log:
        for one in RECORDS[1:]:
            log.append(one)
    from wandb.proto.wandb_internal_pb2 import Record
    from wandb.sdk.internal.datastore import DataStore

    found, names = [], set()
    for path in sorted(workdir.glob("wandb/offline-run-*/run-*.wandb")):
        names.add(re.fullmatch(r"run-(.*)\.wandb", path.name)[1])
        store = DataStore()
        store.open_for_scan(str(path))
        while (data := store.scan_data()) is not None:
            one = Record.FromString(data)
            if one.HasField("history"):
                items = {item.key or "/".join(item.nested_key): item.value_json for item in one.history.item}
                step = json.loads(items["_step"]) if "_step" in items else one.history.step.num
                found += [(name, step, json.loads(text)) for name, text in items.items() if not name.startswith("_")]
    assert sorted(found) == sorted(scalars(RECORDS))
    assert names == {json.loads((workdir / "wandb.json").read_text())["id"]}


def test_a_missing_library_is_one_line_that_installs_it(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "wandb" else find(name))
    check_writers(["tensorboard"])
    with pytest.raises(InputError, match="^--wandb: wandb is not installed; pip install wandb$"):
        check_writers(["tensorboard", "wandb"])
