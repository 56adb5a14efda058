"""Feature rows in blocks, and a block of pairs screened in float32 with a bound on the error.

`bounds` computes |a|^2 + |b|^2 - 2 a.b in float32, centred on the mean, at JAX's highest precision.
With u = 2^-24 and d dimensions that errs, in any order of summation, by about (d + 10) u (|a|^2 +
|b|^2) at most; a little more is allowed for. `exact_distances` is sum((a - b)^2) in float64.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from evaluation.metrics.features import Features

GROUP = 16  # rows of a block are padded to a multiple; those of a group share a minimum
_EXACT_VALUES = 1 << 22  # values of one block of exact differences: 32 MiB
_LARGEST = 1e16  # of a centred feature: squares and their sums stay within float32

_Float = NDArray[np.float64]
_Int = NDArray[np.int64]


class Points(NamedTuple):
    """A block of rows on the device.

    Attributes:
        x: (p, d) float32, centred, padded with zeros.
        norms: (p,) squared norms of its rows.
        rows: how many of the p are no padding.
        start: index of row 0 among all features.
    """

    x: jax.Array
    norms: jax.Array
    rows: np.int32
    start: np.int32


@dataclass(frozen=True)
class RowBlock:
    """Rows of the features from `start` on, as they are and as they go to the screen."""

    start: int
    rows: Features
    points: Points


@dataclass(frozen=True)
class RowSet:
    """One of the two sets of features of a comparison, to be cut into blocks of `block` rows."""

    features: Features
    centre: _Float
    block: int

    def sizes(self) -> list[int]:
        """Rows of each block, nearly equal, so that little of a block is padding."""
        n = len(self.features)
        size = -(-n // -(-n // self.block))
        return [min(size, n - start) for start in range(0, n, size)]

    def blocks(self, first: int = 0) -> Iterator[RowBlock]:
        """The blocks from number `first` on.

        Raises:
            ValueError: features whose distances would overflow float32.
        """
        sizes = self.sizes()
        padded = -(-sizes[0] // GROUP) * GROUP
        for number in range(first, len(sizes)):
            start = number * sizes[0]
            rows = np.asarray(self.features[start : start + sizes[number]])
            centred = rows - self.centre
            if np.abs(centred).max(initial=0.0) > _LARGEST:
                raise ValueError(
                    f"features spread over more than {_LARGEST:.0e}: distances would overflow"
                )
            x = np.zeros((padded, rows.shape[1]), np.float32)
            x[: len(rows)] = centred
            norms = np.square(x, dtype=np.float64).sum(axis=1).astype(np.float32)
            points = Points(
                jnp.asarray(x), jnp.asarray(norms), np.int32(len(rows)), np.int32(start)
            )
            yield RowBlock(start, rows, points)


def bounds(a: Points, b: Points, exclude_self: bool) -> tuple[jax.Array, jax.Array]:
    """The least and the largest that the squared distances (p, q) can be.

    Both are infinite for padding, and with `exclude_self` for a row with itself.
    """
    (p, d), q = a.x.shape, b.x.shape[0]
    sizes = a.norms[:, None] + b.norms[None, :]
    squared = sizes - 2 * jnp.matmul(a.x, b.x.T, precision=jax.lax.Precision.HIGHEST)
    # the last for what float32 flushes to zero
    noise = sizes * ((1.05 * d + 32) * 2.0**-24) + 2.0**-100
    i, j = jnp.arange(p)[:, None], jnp.arange(q)[None, :]
    excluded = (i >= a.rows) | (j >= b.rows)
    if exclude_self:
        excluded |= i + a.start == j + b.start
    lower = jnp.where(excluded, jnp.inf, squared - noise)
    upper = jnp.where(excluded, jnp.inf, squared + noise)
    return lower, upper


def exact_distances(a: Features, b: Features) -> _Float:
    """Distances (pairs,) of rows a to rows b, both (pairs, d)."""
    return np.sqrt(np.square(np.subtract(a, b, dtype=np.float64)).sum(axis=1))


def pair_blocks(i: _Int, j: _Int, dim: int) -> Iterator[tuple[_Int, _Int]]:
    """Indices of pairs, as many at a time as `exact_distances` has memory for."""
    step = max(1, _EXACT_VALUES // dim)
    for start in range(0, len(i), step):
        yield i[start : start + step], j[start : start + step]
