"""Feature rows: what ranges wrote is one array, and no other rows pass for those of statistics."""

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evaluation.features import range_files
from evaluation.features.rows import assemble, range_is_whole, read_rows, rows_path, writer
from schemas.statistics import FeatureStatistics, Moments
from tests.refusals import refused

KEY = "k" * 16
ROWS = np.random.default_rng(0).normal(size=(23, 4)).astype(np.float32)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.npz"


def write(path: Path, parts: Sequence[np.ndarray]) -> None:
    """The rows of each range, in blocks of up to three."""
    for index, part in enumerate(parts):
        with writer(path, KEY, index, keep=True) as take:
            for start in range(0, len(part), 3):
                take(part[start : start + 3])


def statistics(features: dict[str, Any] | None) -> FeatureStatistics:
    protocol = {} if features is None else {"features": features}
    return FeatureStatistics.from_moments(Moments.of(ROWS), protocol)


def refusal(path: Path, features: dict[str, Any] | None) -> str:
    return refused(lambda: read_rows(path, statistics(features)))


@pytest.mark.parametrize("cuts", [[], [7], [1, 2, 20], [9, 9]])
def test_ranges_become_one_array_in_their_order(path: Path, cuts: list[int]) -> None:
    parts = np.split(ROWS, cuts)
    write(path, parts)
    facts = assemble(path, KEY, len(parts), ROWS.shape)
    np.testing.assert_array_equal(np.load(rows_path(path)), ROWS)  # as anybody reads it
    found = read_rows(path, statistics(facts))
    np.testing.assert_array_equal(found, ROWS)
    assert isinstance(found, np.memmap), "mapped, not in memory"
    assert found.dtype == np.dtype("<f4")


def test_blocks_of_any_type_and_order_are_float32_rows(path: Path) -> None:
    with writer(path, KEY, 0, keep=True) as take:
        take(np.asfortranarray(ROWS[:9]))
        take(ROWS[9:].astype(np.float64))  # type: ignore[arg-type]
    assemble(path, KEY, 1, ROWS.shape)
    np.testing.assert_array_equal(np.load(rows_path(path)), ROWS)


def test_a_range_counts_when_all_of_it_is_there(path: Path) -> None:
    shape = (23, 4)
    assert not range_is_whole(path, KEY, 0, shape)
    with suppress(KeyboardInterrupt), writer(path, KEY, 0, keep=True) as take:
        take(ROWS)
        raise KeyboardInterrupt
    assert not range_is_whole(path, KEY, 0, shape), "killed before it was closed"
    write(path, [ROWS])
    assert range_is_whole(path, KEY, 0, shape)
    assert not range_is_whole(path, KEY, 0, (22, 4))
    assert not range_is_whole(path, KEY, 1, shape)
    os.truncate(range_files.rows_path(path, KEY, 0), 23 * 4 * 4 - 1)
    assert not range_is_whole(path, KEY, 0, shape)


def test_rows_that_are_not_wanted_are_nowhere(path: Path) -> None:
    with writer(path, KEY, 0, keep=False) as take:
        take(ROWS)
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("ranges", [1, 3])
def test_rows_that_are_not_all_of_them_become_no_file(path: Path, ranges: int) -> None:
    write(path, np.split(ROWS, [7]))
    with pytest.raises((RuntimeError, FileNotFoundError)):
        assemble(path, KEY, ranges, ROWS.shape)
    assert not rows_path(path).exists()
    assert [entry.name for entry in path.parent.iterdir()] == ["a.npz.parts"]


def test_other_rows_are_not_read(path: Path) -> None:
    write(path, [ROWS])
    facts = assemble(path, KEY, 1, ROWS.shape)
    assert "holds sums only; repeat its `flowtrain stats` with --features" in refusal(path, None)
    assert "missing or not the rows of" in refusal(path, {"sha256": "0" * 64})
    file = rows_path(path)
    read_rows(path, statistics(facts))
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)  # of the same size, after it was read once
    os.utime(file, ns=(1, 1))
    assert f"{file}: missing or not the rows of {path}" in refusal(path, facts)
    file.unlink()
    assert f"{file}: missing" in refusal(path, facts)
