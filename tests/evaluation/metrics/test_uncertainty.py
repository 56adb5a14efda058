"""Spread and limit of the Fréchet distance: against scipy, direct computation, and a known true
distance.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import scipy.stats

from evaluation.metrics.uncertainty import disjoint_subsets, extrapolate, fit_inverse
from schemas.errors import UserError

ZERO, ONE = np.zeros(6), np.eye(6)


def distance(rows: np.ndarray, mu: np.ndarray, sigma: np.ndarray) -> float:
    rows = rows.astype(np.float64)
    cov = np.cov(rows, rowvar=False)
    root = np.real(scipy.linalg.sqrtm(cov @ sigma))
    return float(np.sum((rows.mean(0) - mu) ** 2) + np.trace(cov + sigma - 2 * root))


def features(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, 6)).astype(np.float32) + np.float32(0.5)


def test_disjoint_subsets_are_cut_from_a_seeded_order() -> None:
    rows = features(103)
    found = disjoint_subsets(rows, ZERO, ONE, parts=4, seed=5)
    order = np.random.default_rng(5).permutation(103)
    values = [distance(rows[order[i : i + 25]], ZERO, ONE) for i in (0, 25, 50, 75)]
    assert found.mean == pytest.approx(np.mean(values), rel=1e-7)
    assert found.std == pytest.approx(np.std(values, ddof=1), rel=1e-6)
    assert (found.parts, found.size) == (4, 25)
    assert found.mean != disjoint_subsets(rows, ZERO, ONE, parts=4, seed=6).mean


def test_a_line_has_scipys_intercept_and_standard_error() -> None:
    rng = np.random.default_rng(1)
    sizes = np.array([100, 150, 200, 320, 500, 900])
    values = 3 + 250 / sizes + 0.1 * rng.normal(size=6)
    found = fit_inverse(sizes, values)
    expected: Any = scipy.stats.linregress(1 / sizes, values)
    assert found.value == pytest.approx(expected.intercept, rel=1e-12)
    assert found.slope == pytest.approx(expected.slope, rel=1e-12)
    assert found.standard_error == pytest.approx(expected.intercept_stderr, rel=1e-10)
    exact = fit_inverse(sizes, 3 + 250 / sizes)
    assert (exact.value, exact.slope) == pytest.approx((3, 250), rel=1e-12)
    assert exact.standard_error < 1e-12


def test_extrapolation_draws_each_size_anew_and_fits_a_line() -> None:
    rows = features(200)
    found = extrapolate(rows, ZERO, ONE, points=5, smallest=40, seed=3)
    generator = np.random.default_rng(3)
    sizes = [40, 80, 120, 160, 200]
    values = [distance(rows[generator.permutation(200)[:size]], ZERO, ONE) for size in sizes]
    expected: Any = scipy.stats.linregress(1 / np.array(sizes), values)
    assert found.value == pytest.approx(expected.intercept, rel=1e-6)
    assert found.slope == pytest.approx(expected.slope, rel=1e-6)
    assert found.standard_error == pytest.approx(expected.intercept_stderr, rel=1e-6)


def test_the_limit_is_nearer_to_the_truth_than_any_finite_distance() -> None:
    # Samples and reference have the same distribution: the true distance is 0.
    rows = np.random.default_rng(0).normal(size=(600, 20))
    found = extrapolate(rows, np.zeros(20), np.eye(20), points=8, smallest=200)
    raw = distance(rows, np.zeros(20), np.eye(20))
    assert raw > 0.15
    assert abs(found.value) < raw / 3
    assert found.slope == pytest.approx(600 * raw, rel=0.3)


def test_rank_deficient_features_with_an_offset_and_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evaluation.metrics.features._VALUES", 50)  # several blocks a subset
    rng = np.random.default_rng(4)
    rows = rng.normal(size=(64, 2)) @ rng.normal(size=(2, 6)) + 1000
    np.save(tmp_path / "rows.npy", rows)
    found = disjoint_subsets(
        np.load(tmp_path / "rows.npy", mmap_mode="r"), np.full(6, 1000.0), 0.0 * ONE, parts=2
    )
    order = np.random.default_rng(0).permutation(64)
    halves = rows[order[:32]], rows[order[32:]]
    # Against a point the distance is the mean square from it, with the unbiased variance.
    expected = [
        np.sum((half.mean(0) - 1000) ** 2) + half.var(axis=0, ddof=1).sum() for half in halves
    ]
    assert found.mean == pytest.approx(np.mean(expected), rel=1e-7)


def test_bad_input() -> None:
    rows = features(50)
    bad = rows.copy()
    bad[49, 5] = np.nan
    with pytest.raises(ValueError, match="NaN or infinity"):
        disjoint_subsets(bad, ZERO, ONE)
    with pytest.raises(ValueError, match="NaN or infinity"):
        extrapolate(bad, ZERO, ONE, smallest=10)
    with pytest.raises(UserError, match="10 subsets needs at least 20 samples, not 19"):
        disjoint_subsets(rows[:19], ZERO, ONE)
    with pytest.raises(
        UserError, match="15 sizes from 5000 samples on need at least 5014 samples, not 50"
    ):
        extrapolate(rows, ZERO, ONE)
    for call in (disjoint_subsets, lambda *a: extrapolate(*a, points=3, smallest=10)):
        with pytest.raises(ValueError, match="dimensions differ"):
            call(rows, np.zeros(5), np.eye(5))
    with pytest.raises(ValueError, match="at least 2 parts"):
        disjoint_subsets(rows, ZERO, ONE, parts=1)
    for points, smallest in ((2, 10), (5, 1)):
        with pytest.raises(ValueError, match="at least 3 points of at least 2"):
            extrapolate(rows, ZERO, ONE, points, smallest)
