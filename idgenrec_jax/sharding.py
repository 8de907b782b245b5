"""The mesh, and the ordered rules from parameters, activations and caches to its axes (docs/devices.md).

Shape first (`jax.eval_shape`), then place: `parameter_shardings` maps a tree of shapes to a tree of shardings, and
`jax.jit` with those shardings is what `pjit` was. Within a program `constrain` says where activations and caches lie;
models name the dimensions and know no mesh.
"""

import math
import re
from typing import Any

import jax
import numpy as np
from absl import logging
from jax import Array
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec, Sharding

from idgenrec_jax.config import MeshConfig
from idgenrec_jax.errors import InputError
from idgenrec_jax.processes import connect
from idgenrec_jax.switches import check_switches

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")

# (pattern searched in the path of a parameter or of its Adam moments, mesh axis of each dimension); the first match
# decides, no match (a scalar) replicates.
PARAMETER_RULES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"(shared|lm_head)/table", ("tensor", "fsdp")),
    (r"position_bias/table", ("fsdp", "tensor")),
    (r"(query|key|value)/kernel", ("fsdp", "tensor")),
    (r"attention/output/kernel", ("tensor", "fsdp")),
    (r"(wi|wi_0|wi_1)/kernel", ("fsdp", "tensor")),
    (r"wo/kernel", ("tensor", "fsdp")),
    (r"norm/scale", ("fsdp",)),
)

# (dimension of an activation or a cache, mesh axes that split it); a dimension without a rule is whole on every device.
ACTIVATION_RULES: tuple[tuple[str, str | tuple[str, ...]], ...] = (
    ("batch", BATCH_AXES),
    ("heads", "tensor"),
    ("d_ff", "tensor"),
    ("rows", "tensor"),
)

SMALL_PARAMETER = 2**16
"""Elements (256 KiB in float32) up to which a parameter that its axis does not divide is kept whole along that axis."""


def make_mesh(config: MeshConfig, devices: list[jax.Device] | None = None) -> Mesh:
    """Return the mesh of axes data, fsdp and tensor over `devices` (all of them by default).

    Raises:
        InputError: the sizes do not multiply to the number of devices, or more than one is -1; or JAX is set to work in
            a way in which no model of this package does.
    """
    check_switches()
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


def replicated(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """Return the sharding that keeps a whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def replicated_beside(tree: Any) -> Sharding:
    """Return the sharding that keeps a whole copy on every device that the arrays of `tree` are on."""
    sharding = jax.tree.leaves(tree)[0].sharding
    return replicated(sharding.mesh) if isinstance(sharding, NamedSharding) else sharding


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Return the sharding that splits the first dimension over data and fsdp."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def batch_devices(mesh: Mesh | AbstractMesh) -> int:
    """Return how many devices a batch is split over; its rows must be a multiple of this."""
    return int(np.prod([mesh.shape[axis] for axis in BATCH_AXES]))


def check_heads(mesh: Mesh | AbstractMesh, num_heads: int, section: str) -> None:
    """Check that no attention head of the T5 of `--config.SECTION` is cut through.

    Heads are no dimension of a kernel, whose columns, all heads side by side, more devices divide.

    Raises:
        InputError: the devices of the tensor axis do not divide the heads.
    """
    if num_heads % mesh.shape["tensor"]:
        raise InputError(
            f"--config.mesh.tensor: {mesh.shape['tensor']} devices do not divide the {num_heads} heads of the T5 of "
            f"--config.{section}; expected a number of devices that divides {num_heads}"
        )


def parameter_sharding(mesh: Mesh | AbstractMesh, path: str, shape: tuple[int, ...]) -> NamedSharding:
    """Return where one parameter lives, by the first rule whose pattern occurs in `path` ("a/b/c").

    A dimension that its axis does not divide is kept whole in a parameter of at most `SMALL_PARAMETER` elements, which
    is logged.

    Raises:
        InputError: such a dimension of a larger parameter.
    """
    for pattern, axes in PARAMETER_RULES:
        if re.search(pattern, path) and len(axes) == len(shape):
            spec: list[str | None] = []
            for axis, size in zip(axes, shape, strict=True):
                fits = axis is None or size % mesh.shape[axis] == 0
                if not fits:
                    found = (
                        f"--config.mesh.{axis}: {mesh.shape[axis]} devices do not divide the {size} of parameter "
                        f"{path} {list(shape)}"
                    )
                    if math.prod(shape) > SMALL_PARAMETER:
                        raise InputError(f"{found}; expected a number of devices that divides {size}")
                    logging.warning("%s; each of them keeps that dimension of this small parameter whole", found)
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


def constrain(array: Array, dimensions: str, *, like: Array | None = None) -> Array:
    """Return an activation or a cache with the demand to lie where `ACTIVATION_RULES` put its named dimensions.

    `dimensions` names each of them in order, as in "batch length d_model". The mesh is that of the arguments of the
    traced program, which every value computed from them carries; `like` is such a value for an `array` that is not
    (zeros). On one device, or without a mesh, `array` itself is returned. A dimension that its axes do not divide is
    left to the compiler: `parameter_sharding` has told about the parameter that it comes from.
    """
    mesh = jax.typeof(array if like is None else like).sharding.mesh
    if mesh.empty or mesh.size == 1:
        return array
    rules = dict(ACTIVATION_RULES)
    spec = []
    for name, size in zip(dimensions.split(), array.shape, strict=True):
        axes = rules.get(name)
        parts = math.prod(mesh.shape[axis] for axis in ((axes,) if isinstance(axes, str) else axes or ()))
        spec.append(PartitionSpec.UNCONSTRAINED if size % parts else axes)
    return jax.lax.with_sharding_constraint(array, NamedSharding(mesh, PartitionSpec(*spec)))
