"""Uncertainty of a Fréchet distance: its spread over subsets, its limit of many samples.

The distance is biased upwards by about a constant over n, the number of samples; the constant
depends on the generator, so distances of different n must not be compared (Chong & Forsyth 2020,
"Effectively Unbiased FID and Inception Score and where to find them"). Every function takes the
samples' features and the mean and covariance of the reference, whose own bias is not removed.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evaluation.metrics.features import Features, check_features, row_blocks
from evaluation.metrics.frechet import frechet_distance
from schemas.errors import UserError
from schemas.statistics import Moments

_Float = NDArray[np.float64]


@dataclass(frozen=True)
class SubsetDistances:
    """Mean and deviation of the distances of `parts` disjoint subsets of `size` samples."""

    mean: float
    std: float
    parts: int
    size: int


@dataclass(frozen=True)
class Extrapolation:
    """A line through distances over 1/n: `value` at 1/n = 0 with its error, and `slope`.

    The error comes from the residuals of the fit. The subsets overlap, so it tells how well the
    line fits rather than what another set of samples would give.
    """

    value: float
    slope: float
    standard_error: float


def disjoint_subsets(
    features: Features, mu: _Float, sigma: _Float, parts: int = 10, seed: int = 0
) -> SubsetDistances:
    """The distances of n // parts samples each, of a seeded order; what is left over is not used.

    The mean is the distance of n // parts samples, higher than that of n. The deviation is that of
    one such distance; for n samples it is about 1 / sqrt(parts) of it.

    Args:
        features: (n, d).
        mu: (d,) mean of the reference.
        sigma: (d, d) covariance of the reference.
        parts: number of subsets, at least 2.
        seed: of the order.

    Raises:
        ValueError: fewer than 2 parts, NaN or infinity, dimensions differ, or sigma is no
            covariance.
        UserError: fewer than 2 samples a part.
    """
    if parts < 2:
        raise ValueError(f"a deviation needs at least 2 parts, not {parts}")
    check_features(features, 2 * parts, f"a Fréchet distance over {parts} subsets")
    size = len(features) // parts
    order = np.random.default_rng(seed).permutation(len(features))
    chosen = [order[i * size : (i + 1) * size] for i in range(parts)]
    values = [_distance(features, rows, mu, sigma) for rows in chosen]
    return SubsetDistances(float(np.mean(values)), float(np.std(values, ddof=1)), parts, size)


def extrapolate(
    features: Features,
    mu: _Float,
    sigma: _Float,
    points: int = 15,
    smallest: int = 5000,
    seed: int = 0,
) -> Extrapolation:
    """The distance for n -> infinity: least squares in 1/n (FID-infinity, Chong & Forsyth 2020).

    Sizes are `points` even steps from `smallest` to all of the samples, each subset drawn anew
    without replacement; the defaults are those of the authors' code (mchong6/FID_IS_infinity,
    score_infinity.py). The line holds only where every size exceeds the feature dimension by far.

    Args:
        features: (n, d).
        mu: (d,) mean of the reference.
        sigma: (d, d) covariance of the reference.
        points: number of sizes, at least 3.
        smallest: the smallest size, at least 2.
        seed: of the draws.

    Raises:
        ValueError: too few points or too small a size, NaN or infinity, dimensions differ, sigma is
            no covariance.
        UserError: too few samples for that many different sizes.
    """
    if points < 3 or smallest < 2:
        raise ValueError(
            f"a line needs at least 3 points of at least 2 samples, not {points} from {smallest}"
        )
    check_features(features, 2, "a Fréchet distance")
    if len(features) < smallest + points - 1:
        raise UserError(
            f"{points} sizes from {smallest} samples on need at least {smallest + points - 1} "
            f"samples, not {len(features)}; draw more, or start smaller"
        )
    generator = np.random.default_rng(seed)
    sizes = np.linspace(smallest, len(features), points).astype(np.int64)
    values = [
        _distance(features, generator.permutation(len(features))[:size], mu, sigma)
        for size in sizes
    ]
    return fit_inverse(sizes, np.array(values))


def fit_inverse(sizes: NDArray[np.int64], values: _Float) -> Extrapolation:
    """Least squares of values (p,) over 1 / sizes (p,), p >= 3, with the intercept's error."""
    x = 1.0 / np.asarray(sizes, np.float64)
    offset = x - x.mean()
    spread = float(offset @ offset)
    slope = float(offset @ values) / spread
    value = float(values.mean()) - slope * float(x.mean())
    residuals = values - (value + slope * x)
    variance = float(residuals @ residuals) / (len(x) - 2)
    error = np.sqrt(variance * (1.0 / len(x) + float(x.mean()) ** 2 / spread))
    return Extrapolation(value, slope, float(error))


def _distance(features: Features, rows: NDArray[np.int64], mu: _Float, sigma: _Float) -> float:
    moments = Moments.zero(features.shape[1])
    for block in row_blocks(features, np.sort(rows)):  # sorted: an array on disk is read forwards
        moments += Moments.of(block)
    return frechet_distance(moments.mean(), moments.cov(), mu, sigma)
