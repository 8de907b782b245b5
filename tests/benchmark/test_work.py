"""The figures of a work, from runs whose length is known."""

import time

import jax
import pytest

from idgenrec_jax.benchmark.machine import Machine, measure_machine
from idgenrec_jax.benchmark.peer import Peer
from idgenrec_jax.benchmark.work import Disagreement, Work, measure, measure_beside, peak_bytes, table
from idgenrec_jax.errors import InputError

MACHINE = Machine("processor", "cpu", 2, "float32", matrix_rate=1e9, bandwidth=1e8)


class SlowPeer(Peer):
    """Answers as a peer would that does two units in 0.1 s."""

    def __init__(self):
        """Starts no process."""

    def outputs(self):
        return {"value": 1}

    def run(self):
        return 0.1, 2.0

    def peak_bytes(self):
        return 2**21


def work(**fields):
    return Work("waiting", "nap", 4.0, lambda: time.sleep(0.02), operations=1e6, num_bytes=1e6, **fields)


def test_rates_ratio_and_floor():
    peak_before = peak_bytes()
    result = measure(work(compare=lambda outputs: f"value {outputs['value']}"), MACHINE, repeats=3, peer=SlowPeer())
    assert result.ours <= 200.0
    assert result.peer == pytest.approx(20.0)
    assert result.ratio == pytest.approx(result.ours / 20.0)
    assert result.spread[0] <= result.ratio <= result.spread[1]
    # 1e6 bytes at 1e8 a second take longer than 1e6 operations at 1e9 a second.
    assert result.floor == pytest.approx(4.0 / 0.01)
    assert result.agreement == "value 1"
    assert 2**20 < peak_before <= result.peak_bytes <= peak_bytes()
    printed = table([result])
    assert "waiting" in printed and f"{result.ratio:.2f}x" in printed and "waiting: value 1" in printed


def test_without_a_peer_there_is_no_ratio():
    result = measure(work(), MACHINE, repeats=1, peer=None)
    assert (result.peer, result.ratio, result.spread, result.peer_peak_bytes) == (None, None, None, None)
    assert " - " in table([result])


def test_a_peer_takes_its_fastest_batch_before_it_is_timed_and_its_differences_are_told():
    class Searched(SlowPeer):
        seconds = 0.1

        def run(self):
            return self.seconds, 2.0

        def choose_batch_size(self, sizes):
            self.seconds = 0.05
            return f"the peer's batch is {max(sizes)}"

    fields = {"differences": ("its softmax is another",), "peer_batch_sizes": (8, 16)}
    timed = work(compare=lambda outputs: "the same", **fields)
    result = measure(timed, MACHINE, repeats=1, peer=Searched())
    assert result.peer == pytest.approx(40.0)
    assert result.agreement == "the same; its softmax is another; the peer's batch is 16"
    alone = measure(timed, MACHINE, repeats=1, peer=None)
    assert alone.agreement == "", "what a peer does otherwise is told where there is one"


def test_two_ways_are_timed_in_turns_each_on_a_line_of_its_own():
    order = []

    def way(name, seconds, **fields):
        def run():
            order.append(name)
            time.sleep(seconds)

        return Work(name, "nap", 2.0, run, operations=1e6, **fields)

    fast, slow = measure_beside(way("fast", 0.01, beside=way("slow", 0.1)), MACHINE, repeats=2)
    assert order == ["fast", "slow"] * 3, "once to warm up, then in turns"
    assert (fast.name, slow.name) == ("fast", "slow")
    assert fast.peer == slow.ours <= 20.0
    assert fast.spread[0] <= fast.ratio <= fast.spread[1] and 2.0 < fast.ratio <= 11.0
    assert fast.floor == slow.floor == pytest.approx(2000.0)
    assert slow.ratio is None


def test_outputs_are_compared_at_full_precision():
    precisions = []

    def run():
        precisions.append(jax.config.jax_default_matmul_precision)
        time.sleep(0.01)

    def compare(outputs):
        return f"compared at {jax.config.jax_default_matmul_precision}"

    result = measure(Work("waiting", "nap", 1.0, run, compare=compare), MACHINE, repeats=1, peer=SlowPeer())
    assert result.agreement == "compared at highest"
    assert precisions == [None, None], "what is timed has JAX's own precision"


def test_outputs_that_differ_end_the_measurement():
    def compare(outputs):
        raise Disagreement("different")

    with pytest.raises(Disagreement, match="different"):
        measure(work(compare=compare), MACHINE, repeats=1, peer=SlowPeer())


def test_a_peer_that_cannot_be_started_is_one_line(tmp_path):
    for python in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(InputError, match=f"^--peer_python={python}: cannot be started .*; name a Python"):
            Peer(str(python), tmp_path)


def test_a_peer_that_ends_before_its_time_is_one_line(tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho '{\"ready\": true}'\n")
    python.chmod(0o755)
    with Peer(str(python), tmp_path) as peer, pytest.raises(InputError, match="worker ended without an answer"):
        peer._process.wait(timeout=60)
        peer.run()


@pytest.mark.slow
def test_the_machine_is_measured():
    machine = measure_machine("float32")
    assert 1e9 < machine.matrix_rate < 1e16
    assert 1e8 < machine.bandwidth < 1e14
    assert machine.cores >= 1 and machine.name
