"""Memory that is freed and taken again: pages that the system need not clear once more."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BYTES = 2**26
_PROGRAM = f"""
import ctypes, resource, sys
from idgenrec_jax.host_memory import give_back_freed_memory, keep_freed_memory
library = ctypes.CDLL(None)
library.malloc.restype = ctypes.c_void_p
def pages_cleared():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
print(sys.argv[1] != "plain" and keep_freed_memory())
if sys.argv[1] == "keep, then give back":
    give_back_freed_memory()
before = pages_cleared()
for _ in range(10):
    block = ctypes.c_void_p(library.malloc({BYTES}))
    library.memset(block, 1, {BYTES})
    library.free(block)
print((pages_cleared() - before) * resource.getpagesize())
"""


def run(mode, **environment):
    command = [sys.executable, "-c", _PROGRAM, mode]
    environment = {"JAX_PLATFORMS": "cpu"} | environment
    lines = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout.split()
    return lines[0] == "True", int(lines[1])


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library has other ways")
def test_what_is_freed_is_used_again_unless_it_is_said_how_memory_is_kept_or_an_accelerator_computes(tmp_path):
    plain, kept = run("plain"), run("keep")
    if plain[1] < 9 * BYTES:
        pytest.skip("this system clears pages that are larger than it says: their number tells nothing")
    assert kept[0] and kept[1] < 2 * BYTES
    given_back = run("keep, then give back")
    assert given_back[0] and given_back[1] >= 9 * BYTES
    for given in ({"MALLOC_TOP_PAD_": "65536"}, {"GLIBC_TUNABLES": "glibc.malloc.top_pad=65536"}):
        left_alone = run("keep", **given)
        assert not left_alone[0] and left_alone[1] >= 9 * BYTES
    (tmp_path / "jax_plugins" / "xla_cuda13").mkdir(parents=True)
    here = os.pathsep.join([str(tmp_path), str(ROOT)])
    assert not run("keep", JAX_PLATFORMS="", PYTHONPATH=here)[0] and run("keep", PYTHONPATH=here)[0]
