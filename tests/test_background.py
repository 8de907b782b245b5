"""Work in the background: its result, its error, and that nothing waits for it."""

import subprocess
import sys
import time

import pytest

from idgenrec_jax.background import in_daemon_thread


def test_the_result_and_the_error_are_those_of_the_work():
    assert in_daemon_thread(lambda: 7).result(timeout=60) == 7

    def work_at_fault():
        raise SystemExit("no")

    with pytest.raises(SystemExit, match="no") as caught:
        in_daemon_thread(work_at_fault).result(timeout=60)
    assert caught.traceback[-1].name == "work_at_fault"


def test_a_process_ends_while_an_epoch_is_planned():
    """As a run that says "stopped and saved" does, whatever the thread has left to do."""
    program = (
        "import threading, time\n"
        "from idgenrec_jax.background import in_daemon_thread\n"
        "begun = threading.Event()\n"
        "in_daemon_thread(lambda: (begun.set(), time.sleep(60)))\n"
        "begun.wait()\n"
        "print('stopped and saved', time.time())\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=50, check=True)
    assert time.time() - float(result.stdout.split()[-1]) < 5 and not result.stderr
