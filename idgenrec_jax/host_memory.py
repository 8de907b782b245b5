"""The host's memory: what a process frees stays with it, for the next step to use."""

import ctypes
import importlib.util
import os

# The names of glibc's malloc.h for the settings of `mallopt`.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8
_LARGEST = 2**31 - 1
_TUNABLE = "glibc.malloc."
# What JAX cannot use an accelerator without: packages of plugins for GPUs and others, and that for TPUs.
_ACCELERATORS = ("jax_plugins", "libtpu")


def keep_freed_memory() -> bool:
    """Have what is freed stay with the process, where JAX has only the CPU and glibc; return whether it will.

    On a CPU, XLA takes the memory of intermediate results anew for each call of a program and frees it at the end.
    glibc returns so large a block to the system, which clears every page of the next one: a third of a training step of
    the preset `tiny`. Beside an accelerator, host memory holds weights on their way, and what is free is better given
    back. Call this before there are other threads. Settings of malloc in the environment are left alone.
    """
    if os.environ.get("JAX_PLATFORMS", "") != "cpu" and any(map(importlib.util.find_spec, _ACCELERATORS)):
        return False
    if _TUNABLE in os.environ.get("GLIBC_TUNABLES", "") or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    # Of several arenas, all but the first take what is large from the system. mallopt returns 1 where it has obeyed.
    settings = {_M_ARENA_MAX: 1, _M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: _LARGEST}
    return all(mallopt(name, value) == 1 for name, value in settings.items())
