"""Sums add as if all images had been measured at once, and their file gives them back."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from evaluation.features.sums import Sums, read_sums, write_sums
from evaluation.metrics.inception_score import ScoreSums
from schemas.statistics import Moments

RNG = np.random.default_rng(0)
FEATURES, LOGITS, LABELS = (
    RNG.standard_normal((20, 4)),
    RNG.standard_normal((20, 3)),
    RNG.integers(0, 2, 20),
)


def sums(rows: slice, *, spatial: bool = True) -> Sums:
    splits = np.arange(20)[rows] // 8
    return Sums(
        Moments.of(FEATURES[rows]),
        np.bincount(LABELS[rows], minlength=2),
        correct=len(splits) // 2,
        rejected=1,
        spatial=Moments.of(FEATURES[rows, :2]) if spatial else None,
        scores={
            int(each): ScoreSums.of(LOGITS[rows][splits == each]) for each in np.unique(splits)
        },
    )


def check_same(found: Sums, expected: Sums, rtol: float) -> None:
    arrays, others = found.to_arrays(), expected.to_arrays()
    assert arrays.keys() == others.keys()
    for name, value in arrays.items():
        assert value.dtype == others[name].dtype, name
        np.testing.assert_allclose(value, others[name], rtol=rtol, atol=rtol, err_msg=name)


def test_parts_add_up_to_the_whole() -> None:
    first, second = sums(slice(0, 11)), sums(slice(11, 20))
    whole = replace(sums(slice(0, 20)), correct=5 + 4, rejected=2)
    assert set(whole.scores) == {0, 1, 2}, "the second split lies in both parts"
    check_same(first + second, whole, 1e-12)
    plain = sums(slice(0, 11), spatial=False) + sums(slice(11, 20), spatial=False)
    assert plain.spatial is None


@pytest.mark.parametrize("spatial", [True, False])
def test_a_file_gives_back_what_was_written(spatial: bool, tmp_path: Path) -> None:
    written = sums(slice(0, 20), spatial=spatial)
    write_sums(tmp_path / "a.npz", written, {"of": "these"})
    found = read_sums(tmp_path / "a.npz", {"of": "these"})
    assert found is not None
    check_same(found, written, 0)
    assert (found.spatial is None) != spatial
    bare = replace(written, scores={})
    write_sums(tmp_path / "a.npz", bare, {})
    found = read_sums(tmp_path / "a.npz", {})
    assert found is not None
    assert found.scores == {}


def test_what_is_not_there_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    assert read_sums(path, {}) is None
    write_sums(path, sums(slice(0, 20)), {"n": 1})
    assert read_sums(path, {"n": 2}) is None
    whole = path.read_bytes()
    for content in (b"", whole[:100], whole[:-100]):
        path.write_bytes(content)
        assert read_sums(path, {"n": 1}) is None
    np.savez(path, of=np.array('{"n": 1}'))
    assert read_sums(path, {"n": 1}) is None
    np.savez(path, of=np.array({"n": 1}, dtype=object))  # a pickle
    assert read_sums(path, {"n": 1}) is None
