"""What this machine can do at best: its matrix-product rate and its memory bandwidth, measured."""

import dataclasses
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

_MATRIX_SIZES = {"cpu": (1024, 2048), "gpu": (4096, 8192), "tpu": (4096, 8192)}
_VECTOR_BYTES = 2**28
_REPEATS = 7


@dataclasses.dataclass(frozen=True)
class Machine:
    """A machine's name and measured limits, of the device that JAX computes on.

    `matrix_rate` in floating-point operations a second for products of `dtype`, `bandwidth` in bytes a second, read
    and written together.
    """

    name: str
    device: str
    cores: int
    dtype: str
    matrix_rate: float
    bandwidth: float

    def floor_seconds(self, operations: int | float, num_bytes: int | float) -> float:
        """Return the least time in which this machine could do the work: the slower of its products and its traffic."""
        return max(operations / self.matrix_rate, num_bytes / self.bandwidth)


def measure_machine(dtype: str) -> Machine:
    """Measure the best of several square products in `dtype`, and of several passes over 256 MiB."""
    kind = jax.default_backend()

    def product(left: jax.Array, right: jax.Array) -> jax.Array:
        return left @ right

    rates = []
    for size in _MATRIX_SIZES.get(kind, _MATRIX_SIZES["gpu"]):
        # Random, for processors are faster at products of ones.
        left, right = jax.random.normal(jax.random.key(0), (2, size, size)).astype(dtype)
        rates.append(2 * size**3 / best_seconds(jax.jit(product), left, right))
    vector = jnp.ones(_VECTOR_BYTES // 4, jnp.float32)
    seconds = best_seconds(jax.jit(lambda values: values + 1.0), vector)
    return Machine(
        name=_processor(),
        device=jax.devices()[0].device_kind,
        cores=len(os.sched_getaffinity(0)),
        dtype=dtype,
        matrix_rate=max(rates),
        bandwidth=2 * _VECTOR_BYTES / seconds,
    )


def best_seconds(function: Callable[..., Any], *arguments: Any) -> float:
    """Return the shortest of several timed calls of a jitted function, in seconds, after one that compiles."""
    jax.block_until_ready(function(*arguments))
    times = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        times.append(time.perf_counter() - start)
    return min(times)


def _processor() -> str:
    """The processor's name as the system gives it."""
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
