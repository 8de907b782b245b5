"""JAX's global switches: those under which this package cannot work, and those that change what a run computes.

They are set in the environment or by other software in the process, so a run may be resumed under others.
"""

import enum
from typing import Any

import jax

from idgenrec_jax.errors import InputError

_TRANSFER_GUARDS = (
    "jax_transfer_guard",
    "jax_transfer_guard_host_to_device",
    "jax_transfer_guard_device_to_host",
    "jax_transfer_guard_device_to_device",
)
# Switch: the values under which programs of this package can be traced; the first is JAX's default.
_NEEDED: dict[str, tuple[Any, ...]] = {
    "jax_enable_x64": (False,),
    "jax_numpy_dtype_promotion": ("standard",),
    "jax_numpy_rank_promotion": ("allow", "warn"),
    "jax_disable_jit": (False,),
    **dict.fromkeys(_TRANSFER_GUARDS, (None, "allow", "log")),
}
# Random numbers and products depend on these.
_NUMERIC = ("jax_default_prng_impl", "jax_threefry_partitionable", "jax_default_matmul_precision")


def check_switches() -> None:
    """Check JAX's switches before anything is computed.

    Raises:
        InputError: one is set with which the models cannot run (64-bit numbers, strict promotion, no compilation).
    """
    for name, expected in _NEEDED.items():
        found = _value(name, expected[0])
        if found not in expected:
            raise InputError(
                f"{name.upper()}={found}: expected {' or '.join(map(str, expected))}; unset it in the environment, or "
                f"call jax.config.update({name!r}, {expected[0]!r}) first"
            )


def numeric_switches() -> dict[str, Any]:
    """Return the switches on which random numbers and products depend, for the files of a run."""
    return {name: _value(name, None) for name in _NUMERIC}


def _value(name: str, default: Any) -> Any:
    """A switch's value; a version of JAX that does not have it works as if it had the default."""
    found = getattr(jax.config, name, default)
    return found.value if isinstance(found, enum.Enum) else found
