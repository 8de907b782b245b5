"""The host's memory: what a process frees stays with it, for the next step to use."""

import ctypes
import importlib.util
import os

# The names of glibc's malloc.h for the settings of `mallopt`.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -3, -4, -8
# Of several arenas, all but the first take what is large from the system. -1: the end of the heap is never cut off.
_KEEP = {_M_ARENA_MAX: 1, _M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: -1}
# To what glibc's own settings rise by themselves, which they no longer do once one has been set.
_GIVE_BACK = {_M_MMAP_MAX: 2**16, _M_MMAP_THRESHOLD: 2**25, _M_TRIM_THRESHOLD: 2**26}
_is_kept = False
_TUNABLE = "glibc.malloc."
# What JAX cannot use an accelerator without: packages of plugins for GPUs and others, and that for TPUs.
_ACCELERATORS = ("jax_plugins", "libtpu")


def keep_freed_memory() -> bool:
    """Have what is freed stay with the process, where JAX has only the CPU and glibc; return whether it will.

    On a CPU, XLA takes the memory of intermediate results anew for each call of a program and frees it at the end.
    glibc returns so large a block to the system, which clears every page of the next one: a third of a training step of
    the preset `tiny`. Beside an accelerator, host memory holds weights on their way, and what is free is better given
    back. Call this before there are other threads. Settings of malloc in the environment are left alone.

    With large models blocks of many sizes do not fit into each other's places: the peak of T5-small more
    than doubles, for 15% of a step's time. `give_back_freed_memory` is for these.
    """
    global _is_kept
    if os.environ.get("JAX_PLATFORMS", "") != "cpu" and any(map(importlib.util.find_spec, _ACCELERATORS)):
        return False
    _is_kept = _set(_KEEP)
    return _is_kept


def give_back_freed_memory() -> None:
    """Have large blocks go back to the system when they are freed, as before `keep_freed_memory`."""
    if _is_kept:
        _set(_GIVE_BACK)


def _set(settings: dict[int, int]) -> bool:
    """Whether glibc is there, is not told otherwise by the environment, and has obeyed."""
    if _TUNABLE in os.environ.get("GLIBC_TUNABLES", "") or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    # mallopt returns 1 where it has obeyed.
    return all(mallopt(name, value) == 1 for name, value in settings.items())
