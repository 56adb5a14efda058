"""Where arrays live: one mesh axis, `data`; batches are cut along it and parameters are replicated."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from schemas.errors import UserError

DATA_AXIS = "data"
Devices = Sequence[Any]  # of jax.Device, which type checkers do not take for a type


def data_mesh(batch_size: int, devices: Devices | None = None) -> Mesh:
    """A mesh over all local devices, or over those given.

    Raises:
        UserError: the batch cannot be cut into equal parts.
    """
    devices = jax.local_devices() if devices is None else devices
    if batch_size % len(devices):
        nearest = max(1, round(batch_size / len(devices))) * len(devices)
        raise UserError(
            f"train.batch_size {batch_size} is not divisible by {len(devices)} devices; "
            f"try --set train.batch_size={nearest}"
        )
    return Mesh(np.array(devices), (DATA_AXIS,), axis_types=(AxisType.Auto,))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The first axis is cut over the devices."""
    return NamedSharding(mesh, PartitionSpec(DATA_AXIS))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())
