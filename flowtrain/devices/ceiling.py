"""What the devices at hand can do at most, measured: the denominator of model FLOPs utilisation.

Imports with JAX and NumPy alone.
"""

import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# By platform: side of the matrix, and products in one dispatch, so that launching them costs
# nothing beside them.
_SIZES = {"cpu": (1024, 1)}
_SIZE = (4096, 16)
_ROUNDS, _SECONDS = 8, 0.3


def matmul_ceiling(dtype: Any, devices: Sequence[Any]) -> float:
    """FLOP/s of `devices` together on square matrix products, the best of a few rounds.

    Model FLOPs utilisation is here the model's FLOP/s (three forward passes an image) over this
    number: a share of what these devices were seen to do, in this dtype and at JAX's default matmul
    precision, and not of a data sheet. All devices work at once, as in training. Products of this
    size keep an accelerator as good as full; on a CPU that others use too, the number is what was
    left over at that moment, and the utilisation may pass 1.

    Args:
        dtype: of the factors, e.g. jnp.bfloat16: that of the network's activations.
        devices: `jax.Device`s of one platform, such as `mesh.devices.flat`.

    Returns:
        2 x side^3 x products x devices / seconds, in FLOP/s.
    """
    devices = list(devices)
    side, products = _SIZES.get(devices[0].platform, _SIZE)
    # Uniform of variance 1/side: products keep the size of a factor. Zeros would be multiplied at
    # less power.
    factor = (np.random.default_rng(0).random((side, side), np.float32) - 0.5) * np.float32(
        np.sqrt(12 / side)
    )
    factors = [
        jax.device_put(jnp.asarray(factor, dtype, device=devices[0]), device) for device in devices
    ]

    @jax.jit
    def multiply(x: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, products, lambda _, y: y @ x, x)

    def measure() -> float:
        begin = time.perf_counter()
        jax.block_until_ready([multiply(x) for x in factors])
        return time.perf_counter() - begin

    measure()  # compiles
    rounds = [measure()]
    while len(rounds) < _ROUNDS and sum(rounds) < _SECONDS:
        rounds.append(measure())
    return 2 * side**3 * products * len(devices) / min(rounds)
