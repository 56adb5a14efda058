"""A screen in float32 holds the exact distances between its bounds; blocks are all rows once."""

from collections.abc import Callable

import numpy as np
import pytest

from evaluation.metrics import row_blocks
from evaluation.metrics.row_blocks import GROUP, RowSet, bounds, exact_distances, pair_blocks


def row_set(rows: np.ndarray, block: int) -> RowSet:
    return RowSet(rows, rows.astype(np.float64).mean(axis=0), block)


@pytest.mark.parametrize(("n", "block"), [(1, 5), (5, 5), (6, 5), (17, 5), (100, 33), (100, 1000)])
def test_blocks_are_all_rows_once_and_of_one_size(n: int, block: int) -> None:
    rows = np.random.default_rng(n).normal(size=(n, 3)).astype(np.float32)
    whole = row_set(rows, block)
    sizes = whole.sizes()
    assert sum(sizes) == n
    assert max(sizes) <= block
    assert max(sizes) - min(sizes) <= len(sizes), "little of a block is padding"
    blocks = list(whole.blocks())
    assert [len(one.rows) for one in blocks] == sizes
    assert [one.start for one in blocks] == np.cumsum([0, *sizes[:-1]]).tolist()
    np.testing.assert_array_equal(np.concatenate([one.rows for one in blocks]), rows)
    assert {len(one.points.x) for one in blocks} == {-(-max(sizes) // GROUP) * GROUP}
    later = list(whole.blocks(first=1))
    assert [one.start for one in later] == [one.start for one in blocks][1:]


def test_padding_is_zeros_and_rows_are_centred() -> None:
    rows = np.random.default_rng(0).normal(size=(5, 3)) + 1000
    (block,) = row_set(rows, 100).blocks()
    x = np.asarray(block.points.x)
    assert (block.points.rows, block.points.start, x.dtype) == (5, 0, np.float32)
    np.testing.assert_allclose(x[:5], rows - rows.mean(axis=0), atol=1e-5)
    assert not x[5:].any()
    np.testing.assert_allclose(
        block.points.norms, np.square(x.astype(np.float64)).sum(1), rtol=1e-6
    )


def near_pairs(rng: np.random.Generator) -> np.ndarray:
    return np.repeat(rng.normal(size=(20, 6)), 2, axis=0) + 1e-6 * rng.normal(size=(40, 6))


def tiny(rng: np.random.Generator) -> np.ndarray:
    return rng.normal(size=(40, 6)) * 1e-25


def huge(rng: np.random.Generator) -> np.ndarray:
    return rng.normal(size=(40, 6)) * 1e14


def uneven(rng: np.random.Generator) -> np.ndarray:
    return rng.normal(size=(40, 6)) * np.logspace(-6, 6, 40)[:, None]


@pytest.mark.parametrize("make", [near_pairs, tiny, huge, uneven])
@pytest.mark.parametrize("exclude_self", [False, True])
def test_exact_distances_lie_within_the_bounds(
    make: Callable[[np.random.Generator], np.ndarray], exclude_self: bool
) -> None:
    rows = make(np.random.default_rng(1))
    one, other = row_set(rows, 23).blocks()
    for a, b in ((one, one), (one, other), (other, one)):
        lower, upper = map(np.asarray, bounds(a.points, b.points, exclude_self))
        for i in range(len(lower)):
            for j in range(lower.shape[1]):
                itself = exclude_self and a.start + i == b.start + j
                if i >= len(a.rows) or j >= len(b.rows) or itself:
                    assert lower[i, j] == upper[i, j] == np.inf
                    continue
                exact = sum(
                    (float(x) - float(y)) ** 2 for x, y in zip(a.rows[i], b.rows[j], strict=True)
                )
                assert lower[i, j] <= exact <= upper[i, j]


def test_bounds_are_narrow_where_float32_is_exact_enough() -> None:
    rows = np.random.default_rng(2).normal(size=(40, 64))
    one, other = row_set(rows, 20).blocks()
    lower, upper = map(np.asarray, bounds(one.points, other.points, False))
    pairs = np.s_[: len(one.rows), : len(other.rows)]  # the others are padding
    width = upper[pairs] - lower[pairs]
    assert width.max() < 0.01, "of distances of about 128: few pairs are left to float64"


def test_distances_of_pairs_are_those_of_plain_python() -> None:
    rng = np.random.default_rng(3)
    a, b = (rng.normal(size=(9, 4)) + 1e4).astype(np.float32), rng.normal(size=(9, 4)) + 1e4
    expected = [
        sum((float(x) - float(y)) ** 2 for x, y in zip(one, other, strict=True)) ** 0.5
        for one, other in zip(a, b, strict=True)
    ]
    np.testing.assert_allclose(exact_distances(a, b), expected, rtol=1e-14)


@pytest.mark.parametrize(("values", "most"), [(1, 1), (12, 3), (1000, 10)])
def test_pairs_come_in_blocks_that_memory_has_room_for(
    values: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_blocks, "_EXACT_VALUES", values)
    i, j = np.arange(10), np.arange(10)[::-1]
    blocks = list(pair_blocks(i, j, dim=4))
    assert max(len(first) for first, _ in blocks) == most
    np.testing.assert_array_equal(np.concatenate([first for first, _ in blocks]), i)
    np.testing.assert_array_equal(np.concatenate([second for _, second in blocks]), j)


def test_features_that_would_overflow_are_refused() -> None:
    with pytest.raises(ValueError, match="would overflow"):
        list(row_set(np.array([[1e17], [0.0], [3.0]]), 9).blocks())
