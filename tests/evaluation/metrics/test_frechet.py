"""The Fréchet distance against scipy's matrix square root and closed forms."""

import numpy as np
import pytest
import scipy.linalg

from evaluation.metrics import factor, frechet_distance, statistics_distance
from schemas.statistics import FeatureStatistics, Moments


def _gaussian(rng: np.random.Generator, dim: int, rank: int) -> tuple[np.ndarray, np.ndarray]:
    mixing = rng.normal(size=(dim, rank))
    return rng.normal(size=dim), mixing @ mixing.T / rank


def test_equals_scipy_sqrtm_on_full_rank() -> None:
    rng = np.random.default_rng(0)
    for dim in (1, 5, 64):
        (mu1, sigma1), (mu2, sigma2) = _gaussian(rng, dim, 2 * dim), _gaussian(rng, dim, 2 * dim)
        root = np.real(scipy.linalg.sqrtm(sigma1 @ sigma2))
        expected = np.sum((mu1 - mu2) ** 2) + np.trace(sigma1 + sigma2 - 2 * root)
        assert frechet_distance(mu1, sigma1, mu2, sigma2) == pytest.approx(expected, rel=1e-8)


def test_equals_the_closed_form_of_commuting_covariances() -> None:
    rng = np.random.default_rng(1)
    basis = np.linalg.qr(rng.normal(size=(32, 32)))[0]
    one, two = rng.uniform(0, 9, size=(2, 32))
    mu1, mu2 = rng.normal(size=(2, 32))
    expected = np.sum((mu1 - mu2) ** 2) + np.sum((np.sqrt(one) - np.sqrt(two)) ** 2)
    sigma1, sigma2 = (basis * one) @ basis.T, (basis * two) @ basis.T
    assert frechet_distance(mu1, sigma1, mu2, sigma2) == pytest.approx(expected, rel=1e-10)


def test_is_exact_for_rank_deficient_covariances() -> None:
    # Rank 3 and rank 2 in 40 dimensions, in one basis, so that the closed form holds.
    basis = np.linalg.qr(np.random.default_rng(2).normal(size=(40, 40)))[0]
    one, two = np.zeros(40), np.zeros(40)
    one[:3], two[1:3] = (4.0, 9.0, 1.0), (1.0, 16.0)
    zero = np.zeros(40)
    distance = frechet_distance(zero, (basis * one) @ basis.T, zero, (basis * two) @ basis.T)
    assert distance == pytest.approx((2 - 0) ** 2 + (3 - 1) ** 2 + (1 - 4) ** 2, abs=1e-6)


def test_rank_deficient_distance_needs_no_square_root_of_noise() -> None:
    # Lines spanned by u and v: the trace of the square root is |uᵀ v|, by hand.
    u, v = np.random.default_rng(3).normal(size=(2, 50))
    zero = np.zeros(50)
    expected = u @ u + v @ v - 2 * abs(u @ v)
    assert frechet_distance(zero, np.outer(u, u), zero, np.outer(v, v)) == pytest.approx(
        expected, rel=1e-6
    )


def test_is_symmetric_and_zero_only_at_equality() -> None:
    rng = np.random.default_rng(4)
    (mu1, sigma1), (mu2, sigma2) = _gaussian(rng, 16, 8), _gaussian(rng, 16, 40)
    forth, back = (
        frechet_distance(mu1, sigma1, mu2, sigma2),
        frechet_distance(mu2, sigma2, mu1, sigma1),
    )
    assert forth == pytest.approx(back, rel=1e-12)
    assert forth > 1
    for scale in (1e-8, 1.0, 1e8):
        same = frechet_distance(mu1, scale * sigma1, mu1, scale * sigma1)
        assert 0.0 <= same < 1e-11 * scale


@pytest.mark.parametrize("rank", [0, 1, 7, 19, 20, 60])
def test_factor_reproduces_its_covariance(rank: int) -> None:
    _, sigma = _gaussian(np.random.default_rng(5), 20, rank) if rank else (0, np.zeros((20, 20)))
    for scale in (1e-12, 1.0, 1e12):
        root = factor(scale * sigma)
        assert root.shape[1] == min(rank, 20) or rank == 19  # which rounding may fill up
        np.testing.assert_allclose(root @ root.T, scale * sigma, atol=1e-13 * scale)


def test_factor_of_a_covariance_in_float32_is_the_nearest_there_is() -> None:
    for rank in (7, 60):
        _, sigma = _gaussian(np.random.default_rng(5), 20, rank)
        rounded = sigma.astype(np.float32).astype(np.float64)
        if rank < 20:
            assert np.linalg.eigvalsh(rounded).min() < -1e-10, "no covariance any more"
        root = factor(rounded)
        np.testing.assert_allclose(root @ root.T, sigma, atol=1e-6)


def test_what_is_no_covariance_is_refused() -> None:
    for sigma in (np.diag([1.0, -0.5]), np.diag([-1.0, -2.0]), np.array([[1.0, 2.0], [2.0, 1.0]])):
        with pytest.raises(ValueError, match="not a covariance"):
            factor(sigma)
    with pytest.raises(ValueError, match="dimensions differ"):
        frechet_distance(np.zeros(2), np.eye(2), np.zeros(3), np.eye(3))


def test_distance_to_a_point() -> None:
    zero, sigma = np.zeros((3, 3)), np.diag([1.0, 2.0, 3.0])
    assert frechet_distance(np.ones(3), zero, np.zeros(3), sigma) == pytest.approx(9, rel=1e-14)
    assert frechet_distance(np.ones(3), zero, np.zeros(3), zero) == 3


def test_moments_merged_in_any_grouping_give_the_distance_of_the_features() -> None:
    rng = np.random.default_rng(6)
    one, two = rng.normal(size=(300, 12)) * 3 + 40, rng.normal(size=(200, 12))
    parts = [Moments.of(part) for part in np.array_split(one, 7)]
    merged = FeatureStatistics.from_moments(sum(parts[1:], parts[0]), {})
    other = FeatureStatistics.from_moments(Moments.of(two), {})
    expected = frechet_distance(
        one.mean(0), np.cov(one, rowvar=False), two.mean(0), np.cov(two, rowvar=False)
    )
    assert statistics_distance(merged, other) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_no_covariance(value: float) -> None:
    sigma = np.eye(3)
    sigma[0, 0] = value
    with pytest.raises(ValueError, match="not a covariance: it holds NaN or infinity"):
        factor(sigma)
