"""Several processes on JAX's distributed runtime: started, kept in step, and ended together.

Every process runs the same program on its own devices and must come to the same collectives in the same order. So what
depends on a clock, a signal or the disk is decided by process 0 (`from_main`) or by all (`any_process`), and process 0
alone writes files. The folder of a run must be one that all processes see.
"""

import ctypes
import functools
import itertools
import json
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from idgenrec_jax.errors import InputError

HEARTBEAT_SECONDS = 30
"""A process that the runtime has not heard of for so long counts as lost, and ends all others."""

PROCESS_LOST = 3
"""The exit code of a process that ends because another is lost."""

_START_SECONDS, _SHUTDOWN_SECONDS = 300, 30
_VERDICT_SECONDS = HEARTBEAT_SECONDS + 15
# Calls of `any_process` whose answers may be on their way, so that the host need not wait for the device.
_ANSWERS_UNDER_WAY = 2
_MESSAGE_MULTIPLE = 256

_has_joined = False
_abort_handlers: list[Any] = []


def start(coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None) -> None:
    """Join the runtime of all processes; must come before anything that uses a device.

    `coordinator` is HOST:PORT of process 0. What is None is taken from the cluster: Slurm, Kubernetes, Cloud TPU, MPI.

    Raises:
        InputError: no cluster was detected, or the processes did not find each other.
    """
    # It would put a handler of its own in place of the program's for SIGTERM.
    jax.config.update("jax_enable_preemption_service", False)
    where = f"--coordinator={coordinator}" if coordinator else "--distributed"
    way_out = (
        "start all of them, under Slurm, Kubernetes or Cloud TPU with --distributed, elsewhere with "
        "--coordinator=HOST:PORT, --num_processes=N and --process_id=0 to N-1"
    )
    _explain_aborts(f"{where}: the other processes did not come within {_START_SECONDS} s; {way_out}")
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            initialization_timeout=_START_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=_SHUTDOWN_SECONDS,
        )
    except (ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{where}: cannot join the other processes ({reason}); {way_out}") from error
    _explain_aborts(
        "ended by the runtime, because another process of this run has ended or cannot be reached (see the lines "
        "above); start all of them again with the same commands, training goes on from its newest checkpoint"
    )
    global _has_joined
    _has_joined = True
    # Nobody is late yet (see `connect`).
    from_main(lambda: None)


def has_others() -> bool:
    """Tell whether this process has joined others."""
    return _has_joined and jax.process_count() > 1


def is_main() -> bool:
    """Tell whether this is process 0, which writes files and speaks to the user."""
    return jax.process_index() == 0


def from_main(compute: Callable[[], Any]) -> Any:
    """Return in every process what `compute`, called by process 0 alone, returns there (a JSON value).

    No process goes on before process 0 is done. Where `compute` raises an InputError or OSError there, the others raise
    an InputError of the same text.
    """
    if jax.process_count() == 1:
        return compute()
    outcome, own_error = {}, None
    if is_main():
        try:
            outcome = {"value": compute()}
        except (InputError, OSError) as error:
            outcome, own_error = {"error": str(error)}, error
    outcome = json.loads(_broadcast(json.dumps(outcome).encode()))
    if "error" in outcome:
        raise own_error or InputError(outcome["error"])
    return outcome["value"]


def connect(mesh: Mesh) -> None:
    """Connect the devices of `mesh` along all combinations of its axes, where they belong to several processes.

    The CPU's runtime connects devices at their first collective, and gives up after 30 s. If that were a training
    step's, a process that finds its program in the cache would give up on another that has to compile it. Devices that
    are connected wait for each other longer.
    """
    if jax.process_count() == 1:
        return
    from_main(lambda: None)
    names = mesh.axis_names
    split = put(np.ones(mesh.devices.shape, np.float32), NamedSharding(mesh, PartitionSpec(*names)))
    axes = [dimension for dimension, name in enumerate(names) if mesh.shape[name] > 1]
    for count in range(1, len(axes) + 1):
        for group in itertools.combinations(axes, count):
            spec = PartitionSpec(*(None if dimension in group else name for dimension, name in enumerate(names)))
            add = functools.partial(jnp.sum, axis=group, keepdims=True)
            jax.block_until_ready(jax.jit(add, out_shardings=NamedSharding(mesh, spec))(split))


def any_process(ask: Callable[[], bool]) -> Callable[[], bool]:
    """Return a function that tells whether `ask` is true in any process, the same in all of them.

    All processes must call it at the same points. With several processes it is late by two calls.
    """
    return ask if jax.process_count() == 1 else _AnyProcess(ask)


def put(tree: Any, sharding: Sharding | None) -> Any:
    """Return numpy arrays as arrays on the devices; each process transfers only what its own devices hold.

    Every process must give the same values. An array that is there already is returned as it is.
    """
    if sharding is None or sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)

    def place(array: Any) -> jax.Array:
        if isinstance(array, jax.Array) and array.sharding == sharding:
            return array
        return jax.make_array_from_callback(np.shape(array), sharding, lambda index: np.asarray(array)[index])

    return jax.tree.map(place, tree)


def readable(tree: Any) -> Any:
    """Return arrays of one mesh so that every process can read all of each; nothing is waited for."""
    first = jax.tree.leaves(tree)[0]
    return tree if first.sharding.is_fully_addressable else _copy_to_all(first.sharding.mesh)(tree)


def await_loss(error: Exception) -> None:
    """Give the runtime time to tell whether `error` comes from the loss of another process; if so, never return."""
    logging.error("%s", str(error).splitlines()[0])
    logging.error("waiting up to %d s for the runtime to tell whether another process is lost", _VERDICT_SECONDS)
    time.sleep(_VERDICT_SECONDS)


def leave(code: int) -> None:
    """End this process at once: in an ordinary exit it would first wait for processes that wait for it."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class _AnyProcess:
    """`any_process` for several processes: each call starts a reduction over all devices and reads an earlier one."""

    def __init__(self, ask: Callable[[], bool]):
        self._ask = ask
        mesh = jax.make_mesh((jax.device_count(),), ("devices",))
        self._split = NamedSharding(mesh, PartitionSpec("devices"))
        self._any = jax.jit(jnp.any, out_shardings=NamedSharding(mesh, PartitionSpec()))
        self._answers: deque[jax.Array] = deque()
        connect(mesh)

    def __call__(self) -> bool:
        own = np.full(jax.device_count(), self._ask())
        flags = jax.make_array_from_callback(own.shape, self._split, lambda index: own[index])
        self._answers.append(self._any(flags))
        return len(self._answers) > _ANSWERS_UNDER_WAY and bool(self._answers.popleft())


@functools.lru_cache
def _copy_to_all(mesh: Mesh) -> Callable[[Any], Any]:
    return jax.jit(lambda tree: tree, out_shardings=NamedSharding(mesh, PartitionSpec()))


def _broadcast(message: bytes) -> bytes:
    """Return the message of process 0."""
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(message))))
    padded = np.zeros(-(-length // _MESSAGE_MULTIPLE) * _MESSAGE_MULTIPLE, np.uint8)
    if is_main():
        padded[:length] = np.frombuffer(message, np.uint8)
    return bytes(np.asarray(multihost_utils.broadcast_one_to_all(padded))[:length])


def _explain_aborts(message: str) -> None:
    """Have one error line said where the runtime aborts the process, as it does in C++ when another process is lost.

    The handler runs in the thread that aborts, one of the runtime's own. Python's `signal` would call it in the main
    thread, which waits for a collective that never ends.
    """

    @ctypes.CFUNCTYPE(None, ctypes.c_int)
    def explain(_number):
        os.write(2, f"error: {message}\n".encode())
        os._exit(PROCESS_LOST)

    # The function must outlive this call.
    _abort_handlers.append(explain)
    ctypes.CDLL(None).signal(signal.SIGABRT, explain)
