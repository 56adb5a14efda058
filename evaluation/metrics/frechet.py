"""Distances between feature distributions."""

import contextlib
from typing import Any

import numpy as np
from jaxtyping import Float64
from numpy.typing import NDArray
from scipy.linalg import lapack as _lapack

from schemas.statistics import FeatureStatistics

_Float = NDArray[np.float64]
lapack: Any = _lapack  # its functions are made at run time
_ROUNDING = 1e-12  # of the largest variance


def factor(sigma: Float64[np.ndarray, "d d"]) -> Float64[np.ndarray, "d k"]:
    """A (d, k) factor r with r rᵀ = sigma up to rounding, where k <= d; sigma may be
    rank-deficient.

    Cholesky's; of a covariance without full rank the one with pivots, whose k is the rank (Higham
    1990, "Analysis of the Cholesky decomposition of a semi-definite matrix"). Where neither
    reproduces sigma, as of one that was rounded to float32, it comes from the eigen-decomposition,
    which takes far longer.

    Raises:
        ValueError: sigma is not positive semi-definite beyond rounding, or not finite.
    """
    if not np.isfinite(sigma).all():
        raise ValueError("not a covariance: it holds NaN or infinity")
    with contextlib.suppress(np.linalg.LinAlgError):
        return np.asarray(np.linalg.cholesky(sigma), np.float64)
    pivoted, order, rank, _ = lapack.dpstrf(sigma, lower=1)
    root = np.zeros((len(sigma), rank))
    root[order - 1] = np.tril(pivoted[:, :rank])
    if np.abs(root @ root.T - sigma).max() <= _ROUNDING * np.abs(np.diag(sigma)).max():
        return root
    values, vectors = np.linalg.eigh(sigma)
    largest = max(float(np.abs(values).max()), np.finfo(np.float64).tiny)
    if values.min() < -1e-6 * largest:
        raise ValueError(f"not a covariance: eigenvalue {values.min():.3g} beside {largest:.3g}")
    return vectors * np.sqrt(np.clip(values, 0.0, None))


def frechet_distance(mu1: _Float, sigma1: _Float, mu2: _Float, sigma2: _Float) -> float:
    """Squared Fréchet (2-Wasserstein) distance of two Gaussians: |mu1 - mu2|² + tr(S1 + S2 - 2 (S1
    S2)^½).

    Dowson & Landau 1982; as a measure of generators, Heusel et al. 2017. With S = r rᵀ the trace of
    the square root is the sum of the singular values of r1ᵀ r2: float64, exact for rank-deficient
    covariances, no matrix square root. Arguments: mu (d,), sigma (d, d).

    Raises:
        ValueError: dimensions differ, or a sigma is no covariance.
    """
    if mu1.shape != mu2.shape or sigma1.shape != sigma2.shape:
        raise ValueError(f"dimensions differ: {mu1.shape} and {mu2.shape}")
    root1, root2 = factor(sigma1), factor(sigma2)
    cross = float(np.linalg.svd(root1.T @ root2, compute_uv=False).sum())
    # The traces of the factors, not of the sigmas: then the sum is >= 0 but for rounding, which is
    # cut.
    spread = float(np.square(root1).sum() + np.square(root2).sum()) - 2.0 * cross
    return float(np.square(mu1 - mu2).sum()) + max(spread, 0.0)


def statistics_distance(first: FeatureStatistics, second: FeatureStatistics) -> float:
    """`frechet_distance` of two sets of statistics."""
    return frechet_distance(first.mu, first.sigma, second.mu, second.sigma)
