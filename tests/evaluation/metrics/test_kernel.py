"""KID against sums over pairs, and its statistics over subsets."""

import numpy as np
import pytest

from evaluation.metrics.kernel import kernel_distance, squared_mmd
from schemas.errors import UserError


def by_pairs(x: np.ndarray, y: np.ndarray) -> float:
    """Gretton et al. 2012, eq. 3, one pair at a time."""

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return (float(np.dot(a, b)) / len(a) + 1) ** 3

    m, n = len(x), len(y)
    within_x = sum(kernel(x[i], x[j]) for i in range(m) for j in range(m) if i != j)
    within_y = sum(kernel(y[i], y[j]) for i in range(n) for j in range(n) if i != j)
    between = sum(kernel(a, b) for a in x for b in y)
    return within_x / (m * (m - 1)) + within_y / (n * (n - 1)) - 2 * between / (m * n)


def test_squared_mmd_is_the_sum_over_pairs() -> None:
    rng = np.random.default_rng(0)
    for m, n, dim in ((2, 2, 1), (9, 9, 5), (7, 12, 40)):
        x, y = rng.normal(size=(m, dim)), rng.normal(size=(n, dim)) + 0.5
        assert squared_mmd(x, y) == pytest.approx(by_pairs(x, y), rel=1e-11)


def test_subsets_of_everything_leave_nothing_to_chance() -> None:
    x, y = np.random.default_rng(1).normal(size=(2, 15, 4))
    found = kernel_distance(x, y + 1, subsets=5, subset_size=15)
    assert found.kid == pytest.approx(by_pairs(x, y + 1), rel=1e-11)
    assert found.kid_std == pytest.approx(0, abs=1e-12)
    assert found.kid_sem == pytest.approx(0, abs=1e-12)


def test_deviation_and_standard_error_are_those_of_the_subsets() -> None:
    x, y = np.random.default_rng(2).normal(size=(2, 40, 3)).astype(np.float32)
    found = kernel_distance(x, y[:30], subsets=6, subset_size=8, seed=7)
    generator = np.random.RandomState(7)
    values = []
    for _ in range(6):
        first = generator.choice(40, 8, replace=False)
        second = generator.choice(30, 8, replace=False)
        values.append(by_pairs(x[first].astype(np.float64), y[second].astype(np.float64)))
    assert found.kid == pytest.approx(np.mean(values), rel=1e-10)
    assert found.kid_std == pytest.approx(np.std(values), rel=1e-10)
    assert found.kid_sem == pytest.approx(np.std(values, ddof=1) / np.sqrt(6), rel=1e-10)
    assert (found.subsets, found.subset_size) == (6, 8)
    assert kernel_distance(x, y, 6, 8, seed=8).kid != found.kid


def test_is_unbiased_about_zero_and_sees_a_shift() -> None:
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(2, 600, 16))
    alike = kernel_distance(x, y, subsets=40, subset_size=100)
    assert abs(alike.kid) < 4 * alike.kid_std / np.sqrt(6)  # six disjoint subsets' worth of data
    assert alike.kid < kernel_distance(x, y + 0.5, subsets=40, subset_size=100).kid / 10


def test_near_duplicates_and_low_rank_are_no_trouble() -> None:
    rng = np.random.default_rng(4)
    x = np.repeat(
        rng.normal(size=(3, 2)) @ rng.normal(size=(2, 30)), 5, axis=0
    ) + 1e-9 * rng.normal(size=(15, 30))
    assert squared_mmd(x, x[::-1]) == pytest.approx(by_pairs(x, x), rel=1e-9)


def test_bad_input() -> None:
    good = np.zeros((20, 3))
    bad = good.copy()
    bad[4, 1] = np.nan
    for first, second in ((good, bad), (bad, good)):
        with pytest.raises(ValueError, match="NaN or infinity"):
            kernel_distance(first, second, subset_size=10)
    for first, second in ((good, good[:9]), (good[:9], good)):
        with pytest.raises(UserError, match="subsets of 10 needs at least 10 samples, not 9"):
            kernel_distance(first, second, subset_size=10)
    with pytest.raises(ValueError, match="dimensions differ"):
        kernel_distance(good, good[:, :2], subset_size=10)
    for subsets, size in ((1, 10), (10, 1)):
        with pytest.raises(ValueError, match="at least 2 subsets of at least 2 rows"):
            kernel_distance(good, good, subsets, size)
