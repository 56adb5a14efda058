"""Feature moments as sums: mergeable in any grouping, finalised last.

(n, sum, sum of outer products) in float64: sums can be added in any grouping. The same file holds a
reference and a set of samples, and its `mu` and `sigma` keys are those that pytorch-fid and the ADM
evaluator read.
"""

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from schemas.arrays import array_names, load_arrays
from schemas.errors import UserError
from schemas.files import write_atomic
from schemas.json_text import parse_object


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
        arrays = load_arrays(path, _NAMES)  # ADM's reference also holds images
        if not {"mu", "sigma"} <= arrays.keys():
            names = sorted(array_names(path))
            raise UserError(f"{path}: holds {names}, not the mu and sigma of feature statistics")
    except ValueError as error:
        raise UserError(
            f"{path}: not a readable .npz of plain arrays ({error}); give statistics with mu and "
            "sigma"
        ) from None
    try:
        return _from_arrays(arrays)
    except (ValueError, TypeError) as error:  # of numpy and of json
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
    has_spatial = {"mu_s", "sigma_s"} <= arrays.keys()
    return FeatureStatistics(
        mu,
        sigma,
        _moments(arrays, len(mu)),
        _protocol(arrays),
        spatial=_gaussian(arrays, "mu_s", "sigma_s") if has_spatial else None,
        scores=_scores(arrays),
        labels=_counts(arrays.get("labels")),
        classes=tuple(map(str, arrays["classes"])) if "classes" in arrays else (),
    )


def _protocol(arrays: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    protocol = parse_object(str(arrays["protocol"])) if "protocol" in arrays else {}
    for table in ("images", "features"):
        if not isinstance(protocol.get(table, {}), dict):
            raise ValueError(f"protocol.{table} is not a JSON object")
    return protocol


def _moments(arrays: Mapping[str, NDArray[Any]], dim: int) -> Moments | None:
    if not {"n", "total", "outer"} <= arrays.keys():
        return None
    n = _numbers(arrays, "n", ())
    if n.dtype.kind not in "iu" or n < 2:
        raise ValueError(f"n is {n}, which is no number of images")
    sums = _numbers(arrays, "total", (dim,)), _numbers(arrays, "outer", (dim, dim))
    return Moments(int(n), *(values.astype(np.float64) for values in sums))


def _scores(arrays: Mapping[str, NDArray[Any]]) -> ScoreSplits | None:
    if not arrays.keys() >= {*_SCORES}:
        return None
    splits, classes = len(np.atleast_1d(arrays[_SCORES[0]])), arrays[_SCORES[2]].shape[-1:]
    shapes = (splits,), (splits,), (splits, *classes)
    return ScoreSplits(*(_numbers(arrays, *pair) for pair in zip(_SCORES, shapes, strict=True)))


def _numbers(arrays: Mapping[str, NDArray[Any]], name: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """An array of finite real numbers.

    Raises:
        ValueError: it holds others, or has another shape.
    """
    values = arrays[name]
    if values.dtype.kind not in "fiu":
        raise ValueError(f"{name} holds {values.dtype}, not real numbers")
    if values.shape != shape:
        raise ValueError(f"{name} is {values.shape}, not {shape}")
    if not np.isfinite(values).all():
        raise ValueError(f"{name} holds NaN or infinity")
    return values


def _counts(labels: NDArray[Any] | None) -> NDArray[np.int64] | None:
    """How many images there are of each class; None for what others call labels."""
    if labels is None or labels.ndim != 1 or labels.dtype.kind not in "iu" or (labels < 0).any():
        return None
    return labels.astype(np.int64)


def _gaussian(arrays: Mapping[str, NDArray[Any]], mean: str, covariance: str) -> Gaussian:
    shapes = arrays[mean].shape, arrays[covariance].shape
    if len(shapes[0]) != 1 or shapes[1] != 2 * shapes[0] or not shapes[0][0]:
        raise ValueError(f"{mean} {shapes[0]} and {covariance} {shapes[1]} do not belong together")
    mu = _numbers(arrays, mean, shapes[0]).astype(np.float64)
    sigma = _numbers(arrays, covariance, shapes[1]).astype(np.float64)
    scale = float(np.abs(sigma).max(initial=0.0))
    asymmetry = np.abs(sigma - sigma.T).max(initial=0.0)
    if asymmetry > 1e-6 * scale or (np.diag(sigma) < -1e-6 * scale).any():
        raise ValueError(
            f"{covariance} is no covariance: not symmetric, or negative on its diagonal"
        )
    return Gaussian(mu, sigma)
