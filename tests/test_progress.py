"""Progress at a terminal and in a log file."""

import os
import pty
import re
import select
import tty

import pytest

from idgenrec_jax.progress import Progress, format_bytes, progress_of_unknown


@pytest.fixture
def terminal():
    """The two ends of a pseudo-terminal: a text stream to write to, and a function that reads what has arrived."""
    reader, writer = pty.openpty()
    tty.setraw(writer)
    with open(writer, "w", encoding="utf-8") as stream:

        def read():
            text = b""
            while select.select([reader], [], [], 0.2)[0]:
                text += os.read(reader, 1 << 16)
            return text.decode()

        yield stream, read
    os.close(reader)


@pytest.fixture
def log(tmp_path):
    """A log file to write to, and a function that reads it."""
    path = tmp_path / "log.txt"
    with open(path, "w", encoding="utf-8") as stream:
        yield stream, lambda: path.read_text(encoding="utf-8")


class Clock:
    """A clock that the test moves."""

    seconds = 100.0

    def monotonic(self):
        return self.seconds


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("idgenrec_jax.progress.time", clock)
    return clock


def test_a_terminal_has_one_rewritten_line_that_ends_with_the_work(clock, terminal):
    stream, read = terminal
    progress = Progress("epoch 1/2", 100, "step", stream=stream)
    for done in range(10, 101, 10):
        clock.seconds += 1.0
        progress.update(done)
    progress.close("loss 1.5")
    text = read()
    assert text.count("\n") == 1 and text.endswith("loss 1.5\n")
    lines = text.rstrip("\n").split("\r\x1b[K")
    assert lines[0] == "" and len(lines) == 12
    assert lines[3] == "epoch 1/2: 30/100 steps, 10.0/s, 0:07 left"
    assert lines[-1] == "epoch 1/2: 100/100 steps in 0:10, 10.0/s, loss 1.5"


def test_a_terminal_is_written_to_at_most_five_times_a_second(clock, terminal):
    stream, read = terminal
    progress = Progress("work", 1000, "item", stream=stream)
    for done in range(1000):
        clock.seconds += 0.01
        progress.update(done)
    assert 40 <= read().count("\r") <= 51  # ten seconds of work


def test_a_log_has_plain_lines_rarely_and_one_at_the_end(clock, log):
    stream, read = log
    progress = Progress("work", 4000, "item", stream=stream, log_seconds=20.0)
    for done in range(1, 51):
        clock.seconds += 1.0
        progress.update(done, note="half way")
    progress.close()
    text = read()
    assert text.splitlines() == [
        "work: 20/4000 items, 1.0/s, 1:06:20 left, half way",
        "work: 40/4000 items, 1.0/s, 1:06:00 left, half way",
        "work: 50/4000 items in 0:50, 1.0/s",
    ]
    assert not re.search(r"[\r\x1b]", text)


def test_rate_and_time_left_count_only_what_was_done_here(clock, log):
    stream, read = log
    progress = Progress("resumed", 100, "step", done=80, stream=stream, log_seconds=1.0)
    progress.update(80)
    clock.seconds += 5.0
    progress.update(90)
    assert read() == "resumed: 90/100 steps, 2.0/s, 0:05 left\n"


def test_no_time_left_is_claimed_before_anything_is_done(clock, log):
    stream, read = log
    progress = Progress("work", 10, "step", stream=stream, log_seconds=1.0)
    clock.seconds += 5.0
    progress.update(0)
    assert read() == "work: 0/10 steps, 0.0/s, ? left\n"


def test_bytes_are_written_in_the_unit_that_fits_them_with_their_total_where_it_is_known(clock, log):
    stream, read = log
    progress = Progress("ml-1m.zip", 3 << 20, "byte", done=1 << 20, stream=stream, log_seconds=1.0)
    clock.seconds += 4.0
    progress.update(2 << 20)
    progress.close()
    unknown = Progress("meta.gz", 0, "byte", stream=stream, log_seconds=1.0)
    clock.seconds += 2.0
    unknown.update(1000)
    assert read().splitlines() == [
        "ml-1m.zip: 2.0 MiB of 3.0 MiB, 256.0 KiB/s, 0:04 left",
        "ml-1m.zip: 2.0 MiB of 3.0 MiB in 0:04, 256.0 KiB/s",
        "meta.gz: 1000 B, 500 B/s, ? left",
    ]


def test_work_that_grows_past_its_total_has_no_negative_time_left(clock, log):
    stream, read = log
    progress = Progress("writing IDs", 10, "item", stream=stream, log_seconds=1.0)
    clock.seconds += 100.0
    progress.update(30)
    assert "-" not in read()


def test_progress_of_an_amount_that_is_not_known_yet_reports_what_it_is_told_and_checks_each_time(clock, capsys):
    checks = []
    with progress_of_unknown("texts", "text", check=lambda: checks.append(None)) as report:
        assert not checks
        report(1, 4)
        clock.seconds += 3.0
        report(6, 6)
    assert len(checks) == 2
    assert capsys.readouterr().err == "texts: 6/6 texts in 0:03, 2.0/s\n", "the line is ended with the work"
    with progress_of_unknown("texts", "text", check=lambda: None):
        pass
    assert capsys.readouterr().err == ""

    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), progress_of_unknown("texts", "text", check=stop) as report:
        report(1, 4)


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (3 * 2**30, "3.0 GiB"), (2**52, "4,096.0 TiB")]
)
def test_bytes_are_written_in_units_that_fit(count, text):
    assert format_bytes(count) == text
