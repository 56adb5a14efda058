"""Distances between feature distributions."""

import numpy as np
from numpy.typing import NDArray

from schemas.statistics import FeatureStatistics

_Float = NDArray[np.float64]


def factor(sigma: _Float) -> _Float:
    """A (d, d) factor r with r rᵀ = sigma, from the symmetric eigen-decomposition; sigma may be rank-deficient.

    Raises:
        ValueError: sigma is not positive semi-definite beyond rounding.
    """
    values, vectors = np.linalg.eigh(sigma)
    largest = max(float(np.abs(values).max()), np.finfo(np.float64).tiny)
    if values.min() < -1e-6 * largest:
        raise ValueError(f"not a covariance: eigenvalue {values.min():.3g} beside {largest:.3g}")
    return vectors * np.sqrt(np.clip(values, 0.0, None))


def frechet_distance(mu1: _Float, sigma1: _Float, mu2: _Float, sigma2: _Float) -> float:
    """Squared Fréchet (2-Wasserstein) distance of two Gaussians: |mu1 - mu2|² + tr(S1 + S2 - 2 (S1 S2)^½).

    Dowson & Landau 1982; as a measure of generators, Heusel et al. 2017. With S = r rᵀ the trace of the square root
    is the sum of the singular values of r1ᵀ r2: float64, exact for rank-deficient covariances, no matrix square
    root. Arguments: mu (d,), sigma (d, d).

    Raises:
        ValueError: dimensions differ, or a sigma is no covariance.
    """
    if mu1.shape != mu2.shape or sigma1.shape != sigma2.shape:
        raise ValueError(f"dimensions differ: {mu1.shape} and {mu2.shape}")
    root1, root2 = factor(sigma1), factor(sigma2)
    cross = float(np.linalg.svd(root1.T @ root2, compute_uv=False).sum())
    # The traces of the factors, not of the sigmas: then the sum is >= 0 but for rounding, which is cut.
    spread = float(np.square(root1).sum() + np.square(root2).sum()) - 2.0 * cross
    return float(np.square(mu1 - mu2).sum()) + max(spread, 0.0)


def statistics_distance(first: FeatureStatistics, second: FeatureStatistics) -> float:
    """`frechet_distance` of two sets of statistics."""
    return frechet_distance(first.mu, first.sigma, second.mu, second.sigma)
