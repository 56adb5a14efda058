"""Where arrays live: a mesh of two named axes over all devices of all hosts.

A batch is cut over both axes. Along `data` parameters are replicated; along `fsdp` the large ones,
those of the blocks, are cut, with their moving averages and moments (fully sharded data
parallelism; Rajbhandari et al. 2020, arXiv:1910.02054). One device is the mesh of 1 x 1.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from flowtrain.model import Constrain
from schemas.errors import UserError

DATA_AXIS, FSDP_AXIS = "data", "fsdp"
BATCH_AXES = (DATA_AXIS, FSDP_AXIS)
Devices = Sequence[Any]  # of jax.Device, which type checkers do not take for a type


def make_mesh(devices: Devices | None = None, fsdp: int = 1) -> Mesh:
    """A (data, fsdp) mesh over `devices`, or all, with `fsdp` of them along the second axis.

    Raises:
        UserError: the devices cannot be cut so.
    """
    devices = jax.devices() if devices is None else devices
    if fsdp < 1 or len(devices) % fsdp:
        fits = ", ".join(str(n) for n in range(1, len(devices) + 1) if len(devices) % n == 0)
        raise UserError(
            f"--fsdp {fsdp}: the number of devices, {len(devices)}, is not divisible by it; use "
            f"one of {fits}"
        )
    grid = np.array(devices).reshape(-1, fsdp)
    return Mesh(grid, BATCH_AXES, axis_types=(AxisType.Auto, AxisType.Auto))


def check_batch(mesh: Mesh, batch_size: int, accumulate: int = 1) -> None:
    """Refuse a batch that cannot be cut equally over devices and parts of an accumulation.

    Raises:
        UserError: it cannot; the nearest size that can is named.
    """
    parts = mesh.size * accumulate
    if batch_size % parts:
        nearest = max(1, round(batch_size / parts)) * parts
        over = f" x {accumulate} parts (train.accumulate)" if accumulate > 1 else ""
        raise UserError(
            f"train.batch_size {batch_size} is not divisible by {mesh.size} devices{over}; "
            f"try --set train.batch_size={nearest}"
        )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The first axis is cut over all devices."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


@cache
def constrain_batch(mesh: Mesh) -> Constrain:
    """Keeps activations cut as the batch is, which a mesh of two axes would gather. One function a
    mesh, so that networks which it belongs to are equal.
    """
    sharding = batch_sharding(mesh)
    return lambda x: jax.lax.with_sharding_constraint(x, sharding)


def state_shardings(mesh: Mesh, abstract: Any) -> Any:
    """Shardings for a tree of parameters, averages or moments (arrays or ShapeDtypeStructs).

    The leaves of a block that have at least two axes are cut over `fsdp` along the largest axis
    that can be cut (the last of equals); the others, and all outside of the blocks, are small and
    replicated. Leaves that stack all blocks are cut as those of one block, never along the axis of
    the stack, which is scanned.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: NamedSharding(mesh, _spec(mesh, path, leaf)), abstract
    )


def _spec(mesh: Mesh, path: tuple[Any, ...], leaf: Any) -> PartitionSpec:
    keys = [getattr(entry, "key", None) for entry in path]
    size = mesh.shape[FSDP_AXIS]
    if size == 1 or "blocks" not in keys:
        return PartitionSpec()
    # else a number says which block it is
    stacked = int(not isinstance(keys[keys.index("blocks") + 1], int))
    axes = [axis for axis in range(stacked, len(leaf.shape)) if leaf.shape[axis] % size == 0]
    if len(leaf.shape) - stacked < 2 or not axes:
        return PartitionSpec()
    longest = max(axes, key=lambda axis: (leaf.shape[axis], axis))
    return PartitionSpec(
        *(FSDP_AXIS if axis == longest else None for axis in range(len(leaf.shape)))
    )
