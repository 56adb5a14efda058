"""What every metric asks of its features, read block by block so that an array on disk stays
there.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Float64
from numpy.typing import NDArray

from schemas.errors import UserError

Features = NDArray[np.floating[Any]]
"""(n, d) feature rows of any floating type, in memory or a `np.memmap`."""

_VALUES = 1 << 24  # values of a block that is checked or summed: 128 MiB in float64


def row_blocks(
    features: Features, rows: NDArray[np.int64] | None = None
) -> Iterator[Float64[np.ndarray, "b d"]]:
    """All rows (or those of the indices `rows`) in order, in float64 blocks of at most 2^24 values
    (or one row).
    """
    step = max(1, _VALUES // max(1, features.shape[1]))
    for start in range(0, len(features if rows is None else rows), step):
        part = slice(start, start + step)
        yield np.asarray(features[part if rows is None else rows[part]], np.float64)


def check_features(features: Features, least: int, purpose: str) -> Float64[np.ndarray, " d"]:
    """Refuse features that a metric cannot be computed from.

    Args:
        features: (n, d).
        least: rows that are needed.
        purpose: what they are needed for, for the message.

    Returns:
        The mean (d,) of the rows, a by-product of reading them.

    Raises:
        ValueError: not two-dimensional, or NaN or infinity in them.
        UserError: fewer than `least` rows.
    """
    if features.ndim != 2 or features.shape[1] == 0:
        raise ValueError(f"features must be (n, d), not {features.shape}")
    if len(features) < least:
        samples = "1 sample" if least == 1 else f"{least} samples"
        raise UserError(
            f"{purpose} needs at least {samples}, not {len(features)}; draw more, or ask for less"
        )
    total = np.zeros(features.shape[1])
    for rows in row_blocks(features):
        if not np.isfinite(rows).all():
            raise ValueError("features hold NaN or infinity")
        total += rows.sum(axis=0)
    return total / max(1, len(features))


def check_same_dim(first: Features, second: Features) -> None:
    """Raises `ValueError` when the rows of the two are of different length."""
    if first.shape[1:] != second.shape[1:]:
        raise ValueError(f"dimensions differ: {first.shape[1:]} and {second.shape[1:]}")
