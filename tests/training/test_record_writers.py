"""Records in event files and in Weights & Biases: those of metrics.jsonl, each once, however often a run goes on."""

import importlib.util
import json
import time

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


def tags(records):
    """The scalars as TensorBoard spells them."""
    return [(name.replace("@", "_"), step, value) for name, step, value in scalars(records)]


def open_log(workdir, records, name):
    writers = writer_makers([name], workdir, Config())
    return MetricsLog(workdir / "metrics.jsonl", records=records, writers=writers)


def events(workdir):
    """(tag, step, value) of every event, and the wall times."""
    from tensorboardX.proto.event_pb2 import Event

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
    assert events(tmp_path)[0] == tags(RECORDS[:4])
    # The last two records came after the checkpoint; the run is not ended in order the second time.
    open_log(tmp_path, 2, "tensorboard").append(RECORDS[2])
    with open_log(tmp_path, 2, "tensorboard") as log:
        for one in RECORDS[2:]:
            log.append(one)
    found, times = events(tmp_path)
    assert found == tags(RECORDS)
    assert times[-1] - times[0] == pytest.approx(2.0), "events are as far apart as in training"


def test_event_files_of_a_run_that_had_none_begin_with_its_first_record(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in RECORDS))
    with open_log(tmp_path, 3, "tensorboard"):
        pass
    assert events(tmp_path)[0] == tags(RECORDS[:3])


def leveldb_records(data):
    """The records of a log of LevelDB, in blocks of 32 KiB; what is first in it names the format in seven bytes."""
    start, record = 7, b""
    while start + 7 <= len(data):
        if 32768 - start % 32768 < 7:
            start += 32768 - start % 32768
        length, kind = int.from_bytes(data[start + 4 : start + 6], "little"), data[start + 6]
        record += data[start + 7 : start + 7 + length]
        start += 7 + length
        # 1: whole, 2: its first part, 3: one within, 4: its last.
        if kind in (1, 4):
            yield record
            record = b""


def wandb_scalars(workdir):
    """(name, step, value) of everything that the offline runs under a workdir hold."""
    from wandb.proto.wandb_internal_pb2 import Record

    found = []
    for path in workdir.glob("wandb/offline-run-*/run-*.wandb"):
        for one in map(Record.FromString, leveldb_records(path.read_bytes())):
            if one.HasField("history"):
                items = {"/".join(item.nested_key) or item.key: item.value_json for item in one.history.item}
                values = {name: json.loads(text) for name, text in items.items()}
                found += [(name, values["_step"], value) for name, value in values.items() if not name.startswith("_")]
    return found


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
    # A process of its own writes the files, and may still be at it.
    deadline = time.monotonic() + 30
    while len(wandb_scalars(workdir)) < len(scalars(RECORDS)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert sorted(wandb_scalars(workdir)) == sorted(scalars(RECORDS))
    names = {path.stem for path in workdir.glob("wandb/offline-run-*/run-*.wandb")}
    assert names == {"run-" + json.loads((workdir / "wandb.json").read_text())["id"]}


def test_a_missing_library_is_one_line_that_installs_it(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "wandb" else find(name))
    check_writers(["tensorboard"])
    with pytest.raises(InputError, match="^--wandb: wandb is not installed; pip install wandb$"):
        check_writers(["tensorboard", "wandb"])


def test_a_writer_that_is_not_there_is_one_line():
    with pytest.raises(InputError, match="^log_to: found 'tensorbord', expected one of tensorboard, wandb; nearest"):
        check_writers(["tensorbord"])
