"""The peak of a process is its own, not that of the process that started it."""

import subprocess
import sys
from pathlib import Path

import numpy as np

import idgenrec_jax.benchmark
from idgenrec_jax.benchmark.process_memory import process_peak_bytes

FOLDER = Path(idgenrec_jax.benchmark.__file__).parent
MEBIBYTE = 2**20


def test_the_peak_grows_with_what_is_held_and_is_not_inherited():
    before = process_peak_bytes()
    held = np.ones(200 * MEBIBYTE // 8)
    assert held.sum() > 0
    assert process_peak_bytes() > 200 * MEBIBYTE
    assert process_peak_bytes() >= before
    code = "from process_memory import process_peak_bytes; print(process_peak_bytes())"
    child = subprocess.run([sys.executable, "-c", code], cwd=FOLDER, capture_output=True, text=True, check=True)
    assert MEBIBYTE < int(child.stdout) < 100 * MEBIBYTE
