"""metrics.jsonl after resumes, killed writes and full disks."""

import json

import pytest

from idgenrec_jax.errors import InputError
from idgenrec_jax.training.records import MetricsLog


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_records_are_appended_in_order_and_counted(tmp_path):
    path = tmp_path / "new" / "metrics.jsonl"
    log = MetricsLog(path, records=0)
    for step in range(3):
        log.append({"step": step, "loss": 0.1 * step, "split": "Prüfung"})
        assert len(lines(path)) == log.records == step + 1
    assert lines(path)[2] == {"step": 2, "loss": 0.2, "split": "Prüfung"}


def test_a_resume_forgets_what_the_checkpoint_did_not_know(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path, records=0)
    for step in range(5):
        log.append({"step": step})
    resumed = MetricsLog(path, records=2)
    assert lines(path) == [{"step": 0}, {"step": 1}]
    resumed.append({"step": 2})
    assert lines(path) == [{"step": 0}, {"step": 1}, {"step": 2}] and resumed.records == 3


def test_a_new_run_forgets_everything(tmp_path):
    path = tmp_path / "metrics.jsonl"
    MetricsLog(path, records=0).append({"step": 0})
    MetricsLog(path, records=0)
    assert lines(path) == []


def test_half_a_line_of_a_killed_write_is_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    MetricsLog(path, records=0).append({"step": 0})
    with open(path, "a", encoding="utf-8") as file:
        file.write('{"step": 1, "lo')
    MetricsLog(path, records=1).append({"step": 1})
    assert lines(path) == [{"step": 0}, {"step": 1}]


def test_a_file_that_lost_lines_does_not_repeat_records_later(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path, records=4)  # The file was deleted between two sittings.
    for step in range(4, 7):
        log.append({"step": step})
    known_to_checkpoint = log.records
    log.append({"step": 7})
    MetricsLog(path, records=known_to_checkpoint).append({"step": 7})
    assert lines(path) == [{"step": step} for step in range(4, 8)]


def test_a_file_that_is_no_text_is_one_line_whose_way_out_works(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 0}\n\xff\n')
    with pytest.raises(InputError, match=f"^{path}: cannot be read .*; delete the file, and the run goes on"):
        MetricsLog(path, records=2)
    path.unlink()
    MetricsLog(path, records=2).append({"step": 2})
    assert lines(path) == [{"step": 2}]


@pytest.mark.parametrize(
    "line", ['{"step": 1, "lo', "7", '{"step": 1}', '{"step": 1, "split": "dev", "seconds": 2.0}', "[" * 100_000]
)
def test_a_line_that_is_no_record_is_named_where_a_writer_reads_it(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    content = '{"step": 1, "split": "train", "seconds": 2.0}\n' + line + "\n"
    path.write_text(content)
    with pytest.raises(InputError, match=f"^{path}:2: .*; delete the file, and the run goes on"):
        MetricsLog(path, records=2, writers=[lambda kept: pytest.fail("no writer is opened")])
    assert path.read_text() == content, "nothing is lost yet"


def test_a_full_disk_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path, records=0)
    path.unlink()
    path.symlink_to("/dev/full")
    with pytest.raises(InputError, match="metrics.jsonl: no space left on the disk"):
        log.append({"step": 0})
    assert log.records == 0
