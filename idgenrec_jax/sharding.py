"""The mesh and the ordered rules from parameter names to mesh axes (DESIGN, Engineering).

Shape first (`jax.eval_shape`), then place: `parameter_shardings` maps a tree of shapes to a tree of shardings, and
`jax.jit` with those shardings is what `pjit` was.
"""

import re
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from idgenrec_jax.config import MeshConfig
from idgenrec_jax.errors import InputError
from idgenrec_jax.processes import connect

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")

# (pattern searched in the path of a parameter or of its Adam moments, mesh axis of each dimension); the first match
# decides, no match replicates.
PARAMETER_RULES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"(shared|lm_head)/table", ("tensor", "fsdp")),
    (r"(query|key|value)/kernel", ("fsdp", "tensor")),
    (r"attention/output/kernel", ("tensor", "fsdp")),
    (r"(wi|wi_0|wi_1)/kernel", ("fsdp", "tensor")),
    (r"wo/kernel", ("tensor", "fsdp")),
)


def make_mesh(config: MeshConfig, devices: list[jax.Device] | None = None) -> Mesh:
    """Return the mesh of axes data, fsdp and tensor over `devices` (all of them by default).

    Raises:
        InputError: the sizes do not multiply to the number of devices, or more than one is -1.
    """
    devices = jax.devices() if devices is None else devices
    sizes = {"data": config.data, "fsdp": config.fsdp, "tensor": config.tensor}
    free = [name for name, size in sizes.items() if size == -1]
    given = int(np.prod([size for size in sizes.values() if size != -1]))
    if len(free) > 1 or given == 0 or len(devices) % given or (not free and given != len(devices)):
        found = ", ".join(f"--config.mesh.{name}={size}" for name, size in sizes.items())
        raise InputError(
            f"{found}: expected sizes that multiply to the {len(devices)} devices present, with at most one -1"
        )
    if free:
        sizes[free[0]] = len(devices) // given
    mesh = jax.make_mesh(tuple(sizes.values()), AXES, devices=devices, axis_types=(AxisType.Auto,) * len(AXES))
    connect(mesh)
    return mesh


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding that keeps a whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Return the sharding that splits the first dimension over data and fsdp."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def batch_devices(mesh: Mesh) -> int:
    """Return how many devices a batch is split over; its rows must be a multiple of this."""
    return int(np.prod([mesh.shape[axis] for axis in BATCH_AXES]))


def parameter_sharding(mesh: Mesh, path: str, shape: tuple[int, ...]) -> NamedSharding:
    """Return where one parameter lives, by the first rule whose pattern occurs in `path` ("a/b/c").

    A dimension that its axis does not divide is kept whole, which is logged.
    """
    for pattern, axes in PARAMETER_RULES:
        if re.search(pattern, path) and len(axes) == len(shape):
            spec: list[str | None] = []
            for axis, size in zip(axes, shape, strict=True):
                fits = axis is None or size % mesh.shape[axis] == 0
                if not fits:
                    logging.warning("%s: dimension %d is not a multiple of mesh axis %s; kept whole", path, size, axis)
                spec.append(axis if fits else None)
            return NamedSharding(mesh, PartitionSpec(*spec))
    return replicated(mesh)


def parameter_shardings(mesh: Mesh, shapes: Any) -> Any:
    """Return the tree of shardings for a tree of parameter shapes (arrays or `jax.ShapeDtypeStruct`s)."""

    def place(path, leaf):
        name = "/".join(str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", key)))) for key in path)
        return parameter_sharding(mesh, name, leaf.shape)

    return jax.tree_util.tree_map_with_path(place, shapes)


def place_shapes(mesh: Mesh, shapes: Any) -> Any:
    """Return the same tree of shapes, each with the sharding that `parameter_shardings` gives it."""
    return jax.tree.map(
        lambda shape, sharding: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding),
        shapes,
        parameter_shardings(mesh, shapes),
    )
