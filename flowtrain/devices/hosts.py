"""Several processes of one run: whose rows of a batch, who writes, what all agree on."""

import socket
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding
from numpy.typing import NDArray

from schemas.errors import UserError, reason_of


def join(
    coordinator: str | None, processes: int | None, process: int | None, *, patience: float = 300.0
) -> None:
    """Join the processes of a run, by default as the cluster says (Slurm, Cloud TPU, MPI).

    Args:
        coordinator: HOST:PORT of process 0.
        processes: how many there are.
        process: number of this one, from 0.
        patience: seconds to wait for process 0.

    Raises:
        UserError: the environment says nothing, or process 0 cannot be reached or cannot listen.
    """
    try:
        # JAX ends the whole process, with a stack trace, where this fails
        if coordinator is not None:
            _check_address(coordinator, process or 0, patience)
        jax.distributed.initialize(coordinator, processes, process)
    except (ValueError, RuntimeError, OSError) as error:
        raise UserError(
            f"cannot join the other processes ({str(error).splitlines()[0]}); give --coordinator "
            "HOST:PORT, --processes N and --process I to each of them"
        ) from None


def _check_address(coordinator: str, process: int, patience: float) -> None:
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal():
        raise ValueError(f"{coordinator} is not HOST:PORT")
    if process == 0:
        socket.create_server(("", int(port))).close()
        return
    deadline = time.monotonic() + patience
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise OSError(f"{coordinator}: {reason_of(error)}") from None
            time.sleep(0.1)


def is_main() -> bool:
    """Whether this process writes what is written once."""
    return jax.process_index() == 0


def rows(sharding: NamedSharding, batch_size: int) -> slice:
    """The rows of a batch that this process reads: those of its devices.

    Raises:
        UserError: they are not one range, since the devices of the hosts are interleaved in the
            mesh.
    """
    places = sharding.addressable_devices_indices_map((batch_size,)).values()
    parts = sorted({where[0].indices(batch_size)[:2] for where in places if where is not None})
    start, stop = parts[0][0], parts[-1][1]
    if sum(end - begin for begin, end in parts) != stop - start:
        raise UserError(
            "the devices of a host are not side by side in the mesh; use another --fsdp"
        )
    return slice(start, stop)


def put_batch(batch: Mapping[str, NDArray[Any]], sharding: NamedSharding) -> dict[str, jax.Array]:
    """This process's rows of a batch as arrays of the whole batch, cut over all devices."""
    if jax.process_count() == 1:
        return jax.device_put(dict(batch), sharding)
    return {
        name: jax.make_array_from_process_local_data(sharding, value)
        for name, value in batch.items()
    }


def any_process(flag: bool) -> bool:
    """Whether the flag is set in some process; all processes must call it at the same point."""
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.array(flag))))


def on_one_device(tree: Any) -> Any:
    """Global arrays whole on this process's first device; all processes call it together."""
    device = jax.local_devices()[0]
    if jax.process_count() > 1:
        tree = multihost_utils.process_allgather(tree, tiled=True)
    return jax.device_put(tree, device)
