"""XLA options with which compiling takes a third of the time: what tests compile, most of them run once, on little.

The options are in the environment, for the tests' own process and for those that they start, so that programs that
one of them has compiled are of use to the others. They alter how fast a program runs, and its last bits. What the
environment sets already stays; this compiles as for a user, at three times the time:

    JAX_DISABLE_MOST_OPTIMIZATIONS=0 XLA_FLAGS=--xla_cpu_use_fusion_emitters=true python -m pytest tests/models
"""

import importlib.util
import mmap
import os
from pathlib import Path

# Without fusion emitters XLA writes simple loops; one module of LLVM a program is quicker than several in threads,
# which share the cores with the other worker's.
_FLAGS = {"xla_cpu_use_fusion_emitters": "false", "xla_cpu_parallel_codegen_split_count": "1"}


def compile_quickly() -> None:
    """Set the options; JAX reads them when it is imported, XLA when it compiles for the first time."""
    # No optimisation by LLVM, and none of XLA's that take long.
    os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    given = os.environ.get("XLA_FLAGS", "")
    added = [f"--{name}={value}" for name, value in _FLAGS.items() if name not in given and _is_known(name)]
    os.environ["XLA_FLAGS"] = " ".join([*given.split(), *added])


def _is_known(flag: str) -> bool:
    """Tell whether this version's XLA has a flag: of one that it does not know, it dies."""
    folder = Path(importlib.util.find_spec("jaxlib").origin).parent
    for path in sorted(folder.glob("*.so"), key=lambda path: -path.stat().st_size):
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if content.find(flag.encode()) >= 0:
                return True
    return False
