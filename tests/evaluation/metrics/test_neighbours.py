"""k-NN metrics against full matrices of plain numpy differences, on data that expose rounding, ties
and padding.
"""

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from evaluation.metrics import neighbours, row_blocks
from evaluation.metrics.neighbours import (
    Manifold,
    density_coverage,
    kth_distances,
    nearest,
    precision_recall,
)
from schemas.errors import UserError


def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The full matrix by loops over differences, float64."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    return np.array([[np.sqrt(np.square(x - y).sum()) for y in b] for x in a])


def radii(features: np.ndarray, k: int) -> np.ndarray:
    return np.array(
        [np.sort(np.delete(row, i))[k - 1] for i, row in enumerate(distances(features, features))]
    )


def naive_precision_recall(real: np.ndarray, fake: np.ndarray, k: int) -> tuple[float, float]:
    """ADM's evaluator: radii are those of the k-th other row, a ball holds its surface."""
    matrix, of_real, of_fake = distances(real, fake), radii(real, k), radii(fake, k)
    precision = np.mean([(matrix[:, j] <= of_real).any() for j in range(len(fake))])
    recall = np.mean([(matrix[i] <= of_fake).any() for i in range(len(real))])
    return float(precision), float(recall)


def naive_density_coverage(real: np.ndarray, fake: np.ndarray, k: int) -> tuple[float, float]:
    """Naeem et al., section 3, with the package's strict comparison."""
    inside = distances(real, fake) < radii(real, k)[:, None]
    return float(inside.sum() / (k * len(fake))), float(inside.any(axis=1).mean())


def clusters(
    rng: np.random.Generator, n: int, dim: int, width: float, count: int = 4
) -> np.ndarray:
    return rng.normal(size=(count, dim))[rng.integers(count, size=n)] + width * rng.normal(
        size=(n, dim)
    )


def plain(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.normal(size=(n, 12)).astype(np.float32)


def offset(rng: np.random.Generator, n: int) -> np.ndarray:
    return (rng.normal(size=(n, 12)) + 1000).astype(np.float32)


def tight_clusters_far_apart(rng: np.random.Generator, n: int) -> np.ndarray:
    # In float32 every distance within a cluster is lost in |a|^2 + |b|^2 - 2 a.b.
    return clusters(rng, n, 12, 1e-4) + 1000


def low_rank(rng: np.random.Generator, n: int) -> np.ndarray:
    mixing = np.random.default_rng(9).normal(size=(2, 30))
    return (rng.normal(size=(n, 2)) @ mixing).astype(np.float32)


def integers(rng: np.random.Generator, n: int) -> np.ndarray:
    # 27 places: duplicates, and ties everywhere
    return rng.integers(3, size=(n, 3)).astype(np.float32)


def tiny(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.normal(size=(n, 5)) * 1e-25  # squares vanish in float32


def subnormal(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.normal(size=(n, 5)) * 1e-19  # some squares do


def huge(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.normal(size=(n, 5)) * 1e14


def half(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.normal(size=(n, 7)).astype(np.float16)


DATA = [plain, offset, tight_clusters_far_apart, low_rank, integers, tiny, subnormal, huge, half]
Maker = Callable[[np.random.Generator, int], np.ndarray]


def pair(make: Maker, n: int = 61, m: int = 47) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    real, fake = make(rng, n), make(rng, m)
    fake[:5] = real[10:15]  # memorised
    return real, fake


@pytest.mark.parametrize("make", DATA)
@pytest.mark.parametrize("k", [1, 3])
def test_radii_are_those_of_the_full_matrix(make: Maker, k: int) -> None:
    features, _ = pair(make)
    np.testing.assert_allclose(
        kth_distances(features, k, block=17), radii(features, k), rtol=1e-12, atol=0
    )


@pytest.mark.parametrize("make", DATA)
@pytest.mark.parametrize("k", [1, 3])
def test_precision_and_recall_are_those_of_the_full_matrix(make: Maker, k: int) -> None:
    real, fake = pair(make)
    assert precision_recall(real, fake, k, block=19) == pytest.approx(
        naive_precision_recall(real, fake, k), abs=1e-15
    )


@pytest.mark.parametrize("make", DATA)
@pytest.mark.parametrize("k", [1, 5])
def test_density_and_coverage_are_those_of_the_full_matrix(make: Maker, k: int) -> None:
    real, fake = pair(make)
    assert density_coverage(real, fake, k, block=23) == pytest.approx(
        naive_density_coverage(real, fake, k), abs=1e-14
    )


@pytest.mark.parametrize("make", DATA)
def test_nearest_are_those_of_the_full_matrix_and_ties_go_to_the_lower_index(make: Maker) -> None:
    data, queries = pair(make)
    indices, found = nearest(queries, data, 4, block=13)
    matrix = distances(queries, data)
    expected = np.argsort(matrix, axis=1, kind="stable")[:, :4]
    np.testing.assert_array_equal(indices, expected)
    np.testing.assert_allclose(
        found, np.take_along_axis(matrix, expected, axis=1), rtol=1e-12, atol=0
    )
    np.testing.assert_array_equal(found[:5, 0], 0.0)  # copies, exactly


@pytest.mark.parametrize("make", [plain, tight_clusters_far_apart, integers])
def test_the_block_size_changes_no_bit(make: Maker) -> None:
    real, fake = pair(make, 150, 131)
    results = []
    for block in (29, 64, 149, 4096):
        results.append(
            (
                kth_distances(real, 3, block).tobytes(),
                [part.tobytes() for part in nearest(fake, real, 5, block)],
                precision_recall(real, fake, 3, block),
                density_coverage(real, fake, 5, block),
            )
        )
    assert all(result == results[0] for result in results[1:])


def test_more_rows_than_a_group_of_bounds_holds() -> None:
    # 16 rows share an upper bound: the neighbours asked for may all lie in one group, or there may
    # be fewer groups.
    rng = np.random.default_rng(5)
    data = rng.normal(size=(700, 3)) * 50
    data[320:336] = rng.normal(size=(16, 3)) * 1e-3  # one group, next to the queries
    queries = rng.normal(size=(9, 3)) * 1e-3
    for k in (16, 20, 60):
        indices, _ = nearest(queries, data, k, block=350)
        np.testing.assert_array_equal(
            indices, np.argsort(distances(queries, data), axis=1, kind="stable")[:, :k]
        )


def test_precision_and_recall_are_not_swapped() -> None:
    rng = np.random.default_rng(6)
    real = rng.normal(size=(200, 4))
    narrow = 0.1 * rng.normal(size=(150, 4))  # all plausible, little variety
    precision, recall = precision_recall(real, narrow)
    assert precision == 1.0
    assert recall < 0.2
    assert precision_recall(narrow, real) == pytest.approx((recall, precision))


def test_copies_score_one_and_far_points_zero() -> None:
    real = np.random.default_rng(7).normal(size=(90, 6)).astype(np.float32)
    assert precision_recall(real, real.copy()) == (1.0, 1.0)
    assert density_coverage(real, real.copy())[1] == 1.0
    assert precision_recall(real, real + 100) == (0.0, 0.0)
    assert density_coverage(real, real + 100) == (0.0, 0.0)


def test_surfaces_belong_to_the_balls_of_precision_and_not_to_those_of_density() -> None:
    real = np.array([[0.0], [1.0], [10.0], [11.0]])
    # each exactly one radius away from a real point
    fake = np.array([[2.0], [-1.0], [12.0], [9.0]])
    assert precision_recall(real, fake, k=1)[0] == 1.0
    assert density_coverage(real, fake, k=1) == (0.0, 0.0)


def exact_pairs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Fills with the numbers of pairs whose distances are computed in float64."""
    pairs: list[int] = []
    exact = neighbours.exact_distances

    def counted(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        pairs.append(len(a))
        return exact(a, b)

    monkeypatch.setattr(neighbours, "exact_distances", counted)
    return pairs


def test_images_that_are_all_the_same_need_few_distances(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = exact_pairs(monkeypatch)
    monkeypatch.setattr(row_blocks, "_EXACT_VALUES", 4000)
    same = np.full((500, 8), 3.3, np.float32)
    np.testing.assert_array_equal(kth_distances(same, 3, block=250), 0.0)
    assert sum(pairs) < 500 * 20  # of 250,000


@pytest.mark.parametrize("common", [0, 1000])
def test_few_pairs_are_left_to_float64(common: float, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = exact_pairs(monkeypatch)
    real, fake = (np.random.default_rng(8).normal(size=(2, 1500, 64)) + common).astype(np.float32)
    precision_recall(real, fake, 3, block=512)
    assert sum(pairs) < 3000 * 30  # of 6,750,000


def test_a_manifold_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    real, fake = pair(plain)
    manifold = Manifold.of(real, 3)
    np.testing.assert_array_equal(manifold.radii, kth_distances(real, 3))
    expected = precision_recall(real, fake)
    other = Manifold.of(fake, 3)
    density = density_coverage(Manifold.of(real, 5), fake)
    monkeypatch.setattr(neighbours, "_search_within", None)
    assert precision_recall(manifold, other) == expected
    with pytest.raises(ValueError, match="radii to neighbour 3, not 5"):
        density_coverage(manifold, fake)
    monkeypatch.undo()
    assert density == density_coverage(real, fake)


class _Counted(np.ndarray):
    """Rows that say how many of them are taken at once."""

    most = 0

    def __getitem__(self, key: Any) -> Any:
        rows = super().__getitem__(key)
        if isinstance(rows, np.ndarray) and rows.ndim == 2 and key is not Ellipsis:
            _Counted.most = max(_Counted.most, len(rows))
        return rows


def test_memory_is_that_of_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    n, dim, block = 3000, 16, 200
    rng = np.random.default_rng(10)
    for name in ("real", "fake"):
        np.save(tmp_path / f"{name}.npy", rng.normal(size=(n, dim)).astype(np.float32))
    real, fake = (
        np.load(tmp_path / f"{name}.npy", mmap_mode="r").view(_Counted) for name in ("real", "fake")
    )
    largest = []

    def watched(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            results = function(*arguments, **named)
            largest.append(
                max(
                    leaf.size
                    for leaf in jax.tree.leaves((arguments, results))
                    if hasattr(leaf, "size")
                )
            )
            return results

        return call

    for name in ("_screen", "_screen_both", "_candidates", "_judge"):
        monkeypatch.setattr(neighbours, name, watched(getattr(neighbours, name)))
    monkeypatch.setattr("evaluation.metrics.features._VALUES", block * dim)
    _Counted.most = 0
    tracemalloc.start()
    precision, _ = precision_recall(real, fake, block=block)
    nearest(fake, real, 3, block)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 0.2 < precision < 1
    padded = -(-block // 16) * 16
    assert max(largest) == padded**2
    assert _Counted.most == block
    assert peak < n * n / 2  # bytes; a full matrix of float32 would be 8 times that


def test_bad_input_is_refused_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "bounds", None)
    good = np.zeros((9, 4), np.float32)
    for bad_value in (np.nan, np.inf):
        bad = good.copy()
        bad[8, 3] = bad_value
        for call in (
            lambda bad=bad: kth_distances(bad, 2),
            lambda bad=bad: nearest(good, bad, 1),
            lambda bad=bad: nearest(bad, good, 1),
            lambda bad=bad: precision_recall(bad, good),
            lambda bad=bad: precision_recall(good, bad),
            lambda bad=bad: density_coverage(good, bad),
        ):
            with pytest.raises(ValueError, match="NaN or infinity"):
                call()
    with pytest.raises(UserError, match="neighbour 3 needs at least 4 samples, not 3"):
        kth_distances(good[:3], 3)
    with pytest.raises(UserError, match="neighbour 3 needs at least 4 samples, not 3"):
        precision_recall(good, good[:3])
    with pytest.raises(UserError, match="neighbour 5 needs at least 6 samples, not 5"):
        density_coverage(good[:5], good)
    with pytest.raises(UserError, match="at least 1 sample, not 0"):
        density_coverage(good, good[:0])
    with pytest.raises(UserError, match="10 neighbours needs at least 10 samples, not 9"):
        nearest(good, good, 10)
    for call in (precision_recall, density_coverage, lambda a, b: nearest(a, b, 1)):
        with pytest.raises(ValueError, match="dimensions differ"):
            call(good, good[:, :3])
    with pytest.raises(ValueError, match="must be \\(n, d\\)"):
        kth_distances(good[0], 1)
    with pytest.raises(ValueError, match="at least 1"):
        kth_distances(good, 0)
    with pytest.raises(ValueError, match="would overflow"):
        kth_distances(np.array([[1e17], [0], [3]]), 1)
