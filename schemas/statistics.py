"""Feature moments as sums: mergeable in any grouping, finalised last.

(n, sum, sum of outer products) in float64, as DESIGN section 4 asks: the same file holds a reference and a set of
samples, and its `mu` and `sigma` keys are those that pytorch-fid and the ADM evaluator read.
"""

import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from schemas.errors import UserError
from schemas.files import write_atomic


@dataclass(frozen=True)
class Moments:
    """Sums over n feature rows of dimension d: `total` (d,), `outer` (d, d), both float64."""

    n: int
    total: NDArray[np.float64]
    outer: NDArray[np.float64]

    @classmethod
    def zero(cls, dim: int) -> Self:
        """The neutral element."""
        return cls(0, np.zeros(dim), np.zeros((dim, dim)))

    @classmethod
    def of(cls, features: NDArray[np.floating]) -> Self:
        """Sums of `features` (n, d); products are taken in float64.

        Raises:
            ValueError: not two-dimensional, or not finite.
        """
        rows = np.asarray(features, np.float64)
        if rows.ndim != 2:
            raise ValueError(f"features must be (n, d), not {rows.shape}")
        if not np.isfinite(rows).all():
            raise ValueError("features hold NaN or infinity")
        return cls(rows.shape[0], rows.sum(axis=0), rows.T @ rows)

    def __add__(self, other: "Moments") -> "Moments":
        if self.total.shape != other.total.shape:
            raise ValueError(f"dimensions differ: {self.total.shape[0]} and {other.total.shape[0]}")
        return Moments(self.n + other.n, self.total + other.total, self.outer + other.outer)

    def mean(self) -> NDArray[np.float64]:
        """(d,) sample mean."""
        return self.total / self.n

    def cov(self) -> NDArray[np.float64]:
        """(d, d) unbiased sample covariance, as `np.cov(rowvar=False)`.

        Raises:
            ValueError: fewer than two rows.
        """
        if self.n < 2:
            raise ValueError(f"a covariance needs at least 2 rows, got {self.n}")
        mean = self.mean()
        centred = self.outer - self.n * np.outer(mean, mean)
        return (centred + centred.T) / (2 * (self.n - 1))


@dataclass(frozen=True)
class FeatureStatistics:
    """Mean `mu` (d,) and covariance `sigma` (d, d), float64, of a set of images under one protocol.

    `moments` is None and `protocol` is empty for files that other evaluators wrote.
    """

    mu: NDArray[np.float64]
    sigma: NDArray[np.float64]
    moments: Moments | None
    protocol: Mapping[str, Any]

    @classmethod
    def from_moments(cls, moments: Moments, protocol: Mapping[str, Any]) -> Self:
        """Finalise sums."""
        return cls(moments.mean(), moments.cov(), moments, dict(protocol))

    @property
    def dim(self) -> int:
        """Feature dimension."""
        return self.mu.shape[0]


def write_statistics(path: Path, statistics: FeatureStatistics) -> None:
    """Write an .npz with `mu`, `sigma`, `protocol` (JSON text) and, when known, the raw sums."""
    arrays: dict[str, Any] = {
        "mu": statistics.mu,
        "sigma": statistics.sigma,
        "protocol": np.array(json.dumps(dict(statistics.protocol), sort_keys=True)),
    }
    if statistics.moments is not None:
        moments = statistics.moments
        arrays |= {"n": np.int64(moments.n), "total": moments.total, "outer": moments.outer}
    content = io.BytesIO()
    np.savez(content, **arrays)
    write_atomic(path, content.getvalue())


def read_statistics(path: Path) -> FeatureStatistics:
    """Read statistics written here or by pytorch-fid / the ADM evaluator (`mu`, `sigma`). Pickles are refused.

    Raises:
        UserError: not an .npz, pickled content, or arrays that are no statistics.
    """
    try:
        with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, TypeError, AttributeError, zipfile.BadZipFile, EOFError):  # a lone array is no context
        raise UserError(f"{path}: not a readable .npz of plain arrays; give statistics with mu and sigma") from None
    if not {"mu", "sigma"} <= arrays.keys():
        raise UserError(f"{path}: holds {sorted(arrays)}, not the mu and sigma of feature statistics")
    try:
        return _from_arrays(arrays)
    except (ValueError, TypeError, KeyError) as error:  # of numpy and of json
        raise UserError(f"{path}: not feature statistics: {' '.join(str(error).split())}") from None


def _from_arrays(arrays: Mapping[str, NDArray[Any]]) -> FeatureStatistics:
    mu, sigma = arrays["mu"].astype(np.float64), arrays["sigma"].astype(np.float64)
    if mu.ndim != 1 or sigma.shape != (mu.shape[0], mu.shape[0]):
        raise ValueError(f"mu {mu.shape} and sigma {sigma.shape} do not belong together")
    if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        raise ValueError("mu or sigma holds NaN or infinity")
    scale = float(np.abs(sigma).max(initial=0.0))
    if np.abs(sigma - sigma.T).max(initial=0.0) > 1e-6 * scale or (np.diag(sigma) < -1e-6 * scale).any():
        raise ValueError("sigma is no covariance: not symmetric, or negative on its diagonal")
    protocol = json.loads(str(arrays["protocol"])) if "protocol" in arrays else {}
    if not isinstance(protocol, dict):
        raise ValueError("protocol is not a JSON object")
    moments = None
    if {"n", "total", "outer"} <= arrays.keys():
        moments = Moments(int(arrays["n"]), arrays["total"], arrays["outer"])
    return FeatureStatistics(mu, sigma, moments, protocol)
