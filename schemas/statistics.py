"""Feature moments as sums: mergeable in any grouping, finalised last.

(n, sum, sum of outer products) in float64: sums can be added in any grouping. The same file holds a
reference and a set of samples, and its `mu` and `sigma` keys are those that pytorch-fid and the ADM
evaluator read.
"""

import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

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


class Gaussian(NamedTuple):
    """Mean (d,) and covariance (d, d), float64."""

    mu: NDArray[np.float64]
    sigma: NDArray[np.float64]


# What `numpy.load` and reading its arrays raise: a TypeError for a lone array, which is no context,
# a RuntimeError for a zip that is encrypted or of another kind.
_UNREADABLE = (
    *(OSError, EOFError, zipfile.BadZipFile),
    *(ValueError, TypeError, AttributeError, RuntimeError),
)


class ScoreSplits(NamedTuple):
    """Inception Score sums over s splits: rows (s,) int64, p log p (s,), p (s, classes)."""

    n: NDArray[np.int64]
    plogp: NDArray[np.float64]
    p: NDArray[np.float64]


@dataclass(frozen=True)
class FeatureStatistics:
    """Mean `mu` (d,) and covariance `sigma` (d, d), float64, of a set of images under one protocol.

    `moments` is None and `protocol` is empty for files that other evaluators wrote. `spatial` is of
    the features that sFID compares (ADM's `mu_s`, `sigma_s`), `scores` for the Inception Score,
    `labels` (classes,) int64 how many images of each of `classes` there are; each None (or empty)
    where it was not measured.
    """

    mu: NDArray[np.float64]
    sigma: NDArray[np.float64]
    moments: Moments | None
    protocol: Mapping[str, Any]
    spatial: Gaussian | None = None
    scores: ScoreSplits | None = None
    labels: NDArray[np.int64] | None = None
    classes: tuple[str, ...] = ()

    @classmethod
    def from_moments(cls, moments: Moments, protocol: Mapping[str, Any], **others: Any) -> Self:
        """Finalise sums."""
        return cls(moments.mean(), moments.cov(), moments, dict(protocol), **others)

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
    if statistics.spatial is not None:
        arrays |= {"mu_s": statistics.spatial.mu, "sigma_s": statistics.spatial.sigma}
    if statistics.scores is not None:
        arrays |= {f"score_{name}": value for name, value in statistics.scores._asdict().items()}
    if statistics.labels is not None:
        arrays |= {"labels": statistics.labels, "classes": np.array(statistics.classes)}
    content = io.BytesIO()
    np.savez(content, **arrays)
    write_atomic(path, content.getvalue())


def read_statistics(path: Path) -> FeatureStatistics:
    """Read statistics of this project, pytorch-fid or ADM (`mu`, `sigma`), without pickles.

    Raises:
        UserError: not an .npz, pickled content, or arrays that are no statistics.
    """
    try:
        with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as file:
            names = file.files
            # ADM's reference also holds images
            arrays = {name: file[name] for name in names if name in _NAMES}
    except _UNREADABLE:
        raise UserError(
            f"{path}: not a readable .npz of plain arrays; give statistics with mu and sigma"
        ) from None
    if not {"mu", "sigma"} <= arrays.keys():
        raise UserError(
            f"{path}: holds {sorted(names)}, not the mu and sigma of feature statistics"
        )
    try:
        return _from_arrays(arrays)
    except (ValueError, TypeError, KeyError) as error:  # of numpy and of json
        raise UserError(f"{path}: not feature statistics: {' '.join(str(error).split())}") from None


_SCORES = ("score_n", "score_plogp", "score_p")
_NAMES = frozenset(
    {
        "mu",
        "sigma",
        "mu_s",
        "sigma_s",
        "protocol",
        "n",
        "total",
        "outer",
        "labels",
        "classes",
        *_SCORES,
    }
)


def _from_arrays(arrays: Mapping[str, NDArray[Any]]) -> FeatureStatistics:
    mu, sigma = _gaussian(arrays, "mu", "sigma")
    protocol = json.loads(str(arrays["protocol"])) if "protocol" in arrays else {}
    if not isinstance(protocol, dict):
        raise ValueError("protocol is not a JSON object")
    moments = None
    if {"n", "total", "outer"} <= arrays.keys():
        moments = Moments(int(arrays["n"]), arrays["total"], arrays["outer"])
    return FeatureStatistics(
        mu,
        sigma,
        moments,
        protocol,
        spatial=_gaussian(arrays, "mu_s", "sigma_s")
        if {"mu_s", "sigma_s"} <= arrays.keys()
        else None,
        scores=ScoreSplits(*(arrays[name] for name in _SCORES))
        if arrays.keys() >= {*_SCORES}
        else None,
        labels=_counts(arrays.get("labels")),
        classes=tuple(map(str, arrays["classes"])) if "classes" in arrays else (),
    )


def _counts(labels: NDArray[Any] | None) -> NDArray[np.int64] | None:
    """How many images there are of each class; None for what others call labels."""
    if labels is None or labels.ndim != 1 or labels.dtype.kind not in "iu" or (labels < 0).any():
        return None
    return labels.astype(np.int64)


def _gaussian(arrays: Mapping[str, NDArray[Any]], mean: str, covariance: str) -> Gaussian:
    mu, sigma = arrays[mean].astype(np.float64), arrays[covariance].astype(np.float64)
    if mu.ndim != 1 or sigma.shape != (mu.shape[0], mu.shape[0]):
        raise ValueError(f"{mean} {mu.shape} and {covariance} {sigma.shape} do not belong together")
    if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        raise ValueError(f"{mean} or {covariance} holds NaN or infinity")
    scale = float(np.abs(sigma).max(initial=0.0))
    asymmetry = np.abs(sigma - sigma.T).max(initial=0.0)
    if asymmetry > 1e-6 * scale or (np.diag(sigma) < -1e-6 * scale).any():
        raise ValueError(
            f"{covariance} is no covariance: not symmetric, or negative on its diagonal"
        )
    return Gaussian(mu, sigma)
