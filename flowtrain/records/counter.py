"""Randomness as a counter: numbers follow from (seed, purpose, epoch, record index).

So a batch holds the same numbers however it is cut over workers, devices and hosts, and any step
can be replayed. On device the function is Threefry through `jax.random.fold_in`; on the host, where
a loader must choose without waiting for a device, it is a SplitMix64 hash in NumPy integers, whose
values no NumPy release can change.
"""

from enum import IntEnum

import jax
import numpy as np
from numpy.typing import NDArray

from flowtrain.shapes import Numbers, RandomKey, RandomKeys


class Purpose(IntEnum):
    """The use of a stream of numbers. Values are part of a run: never renumber them."""

    INIT = 0
    NOISE = 1
    TIME = 2
    POSTERIOR = 3
    LABEL_DROP = 4
    ORDER = 5
    FLIP = 6
    SAMPLE_NOISE = 7
    SOLVER_NOISE = 8
    HOLDOUT = 9
    VALIDATION = 10
    SAMPLE_LABEL = 11


def record_keys(key: RandomKey, purpose: Purpose, epoch: Numbers, index: Numbers) -> RandomKeys:
    """One PRNG key a record: `epoch` (n,) and `index` (n,) int32 -> (n,) keys."""
    stream = jax.random.fold_in(key, purpose)
    return jax.vmap(lambda e, i: jax.random.fold_in(jax.random.fold_in(stream, e), i))(epoch, index)


def sample_keys(key: RandomKey, purpose: Purpose, index: Numbers) -> RandomKeys:
    """One PRNG key for each of the samples `index` (n,), which belong to no epoch."""
    stream = jax.random.fold_in(key, purpose)
    return jax.vmap(lambda i: jax.random.fold_in(stream, i))(index)


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser (Steele, Lea & Flood 2014), an avalanching 64-bit bijection."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def host_bits(
    seed: int, purpose: Purpose, epoch: NDArray[np.integer] | int, index: NDArray[np.integer]
) -> NDArray[np.uint64]:
    """64 random bits a record, (n,) uint64, from epoch () or (n,) and distinct index (n,)."""
    gamma = np.uint64(0x9E3779B97F4A7C15)
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64 is meant
        state = np.zeros(1, np.uint64)
        for part in (np.uint64(seed), np.uint64(purpose), np.asarray(epoch).astype(np.uint64)):
            state = _mix(state + gamma * (part + np.uint64(1)))
        return _mix(state + gamma * (index.astype(np.uint64) + np.uint64(1)))
