"""Feature rows block by block: all of them once, and what no metric can be computed from."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from evaluation.metrics import features
from evaluation.metrics.features import check_features, check_same_dim, row_blocks
from schemas.errors import UserError

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("values", [1, 9, 10, 1000])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_blocks_are_all_rows_in_order(
    values: int, dtype: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "_VALUES", values)
    rows = RNG.normal(size=(11, 3)).astype(dtype)
    blocks = list(row_blocks(rows))
    assert all(block.dtype == np.float64 for block in blocks)
    assert max(block.size for block in blocks) <= max(values, 3)
    np.testing.assert_array_equal(np.concatenate(blocks), rows)
    chosen = np.array([7, 0, 7, 10, 3])
    np.testing.assert_array_equal(np.concatenate(list(row_blocks(rows, chosen))), rows[chosen])


def test_rows_on_a_disk_stay_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "_VALUES", 40)
    np.save(tmp_path / "rows.npy", RNG.normal(size=(50, 4)))
    rows = np.load(tmp_path / "rows.npy", mmap_mode="r")
    assert [len(block) for block in row_blocks(rows)] == [10] * 5
    assert [block.base is None for block in row_blocks(rows)] == [False] * 5, "views of the file"


def test_the_mean_of_the_rows_is_a_by_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "_VALUES", 40)
    rows = (RNG.normal(size=(101, 4)) + 1000).astype(np.float32)
    expected = [sum(map(float, column)) / 101 for column in rows.T]
    np.testing.assert_allclose(check_features(rows, 1, "x"), expected, rtol=1e-12)
    np.testing.assert_array_equal(check_features(rows[:0], 0, "x"), np.zeros(4))


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: np.zeros(5), r"features must be \(n, d\), not \(5,\)"),
        (lambda: np.zeros((5, 0)), r"features must be \(n, d\), not \(5, 0\)"),
        (lambda: np.array([[0.0, np.nan]]), "NaN or infinity"),
        (lambda: np.array([[0.0, 0.0], [0.0, -np.inf]]), "NaN or infinity"),
    ],
)
def test_what_is_no_features(make: Callable[[], np.ndarray], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        check_features(make(), 1, "x")


@pytest.mark.parametrize(("least", "told"), [(1, "at least 1 sample, not 0"), (4, "4 samples")])
def test_too_few_are_told_with_the_purpose(least: int, told: str) -> None:
    check_features(np.zeros((least, 2)), least, "a test")
    with pytest.raises(UserError, match=f"^a test needs at least.*{told.split()[-1]}") as caught:
        check_features(np.zeros((least - 1, 2)), least, "a test")
    assert told in str(caught.value)


def test_rows_of_different_length() -> None:
    check_same_dim(np.zeros((2, 5)), np.zeros((9, 5)))
    with pytest.raises(ValueError, match=r"dimensions differ: \(5,\) and \(4,\)"):
        check_same_dim(np.zeros((2, 5)), np.zeros((2, 4)))
