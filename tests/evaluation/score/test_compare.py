"""Statistics against statistics: what a reference must be, and the result of finished images."""

from pathlib import Path

import numpy as np
import pytest

from evaluation.features.measure import MeasureOptions
from evaluation.score.compare import (
    Comparison,
    check_exists,
    check_reference,
    compare_only,
    is_run,
    read_gaussian,
    warn_of_rank,
)
from schemas.errors import UserError
from schemas.run import CHECKPOINTS_DIR, RUN_NAME
from schemas.statistics import FeatureStatistics, Moments, write_statistics
from schemas.storage.directory import WORK
from tests.evaluation.results import PROTOCOL
from tests.evaluation.tiny import RECIPE


def statistics(seed: int, n: int = 40, **protocol: object) -> FeatureStatistics:
    moments = Moments.of(np.random.default_rng(seed).normal(size=(n, PROTOCOL.dim)))
    return FeatureStatistics.from_moments(moments, protocol)


def test_what_is_no_reference_is_told_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such reference; make one with `flowtrain stats"):
        check_exists(tmp_path / "none.npz")
    with pytest.raises(UserError, match="no dataset; of a folder of images make"):
        check_exists(tmp_path)
    (tmp_path / WORK).mkdir()
    check_exists(tmp_path)  # a dataset in the making, which reading it will tell


def test_a_sigma_that_is_no_covariance_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    whole = statistics(0)
    write_statistics(path, whole)
    np.testing.assert_array_equal(read_gaussian(path).sigma, whole.sigma)
    np.savez(path, mu=whole.mu, sigma=2 - np.eye(PROTOCOL.dim))
    with pytest.raises(UserError, match=r"a\.npz: sigma is .*; make the statistics again"):
        read_gaussian(path)


@pytest.mark.parametrize(("n", "warned"), [(5, True), (6, False), (0, True)])
def test_a_covariance_without_full_rank_is_warned_of(n: int, warned: bool) -> None:
    told: list[str] = []
    warn_of_rank(n, 5, "images", told.append)
    assert bool(told) == warned
    if warned:
        assert f"{n} images give a covariance of rank {max(n - 1, 0)} in 5 dimensions" in told[0]


def test_a_reference_is_taken_for_what_it_says(tmp_path: Path) -> None:
    told: list[str] = []
    facts = PROTOCOL.model_dump()
    where = tmp_path / "r.npz"
    mine = FeatureStatistics.from_moments(
        statistics(0).moments or Moments.zero(1), {**facts, "images": {"kind": "source"}}
    )
    assert check_reference(PROTOCOL, mine, where, told.append).n == 40
    assert told == []
    unsaid = check_reference(
        PROTOCOL, statistics(0, images={"kind": "decoded latents"}), where, told.append
    )
    assert unsaid.images == {"kind": "decoded latents"}
    assert "does not say with which extractor it was made; taken for tiny" in told[0]
    assert "hides the VAE's own error" in told[1]
    other = FeatureStatistics.from_moments(
        statistics(0).moments or Moments.zero(1), {**facts, "resolution": 16}
    )
    with pytest.raises(UserError, match=r"r\.npz"):
        check_reference(PROTOCOL, other, where, told.append)


@pytest.mark.usefixtures("tiny_protocol")
def test_statistics_are_compared_without_any_image(tmp_path: Path) -> None:
    files = [tmp_path / "a.npz", tmp_path / "b.npz"]
    both = [statistics(0, 40), statistics(1, 50)]
    for file, one in zip(files, both, strict=True):
        write_statistics(file, one)
    told: list[str] = []
    result = compare_only(Comparison(files[0], files[1], RECIPE), MeasureOptions(), told.append)
    assert result.n == 40
    assert result.sampling is None
    assert result.metrics == {}
    assert result.distance > 0
    same = compare_only(Comparison(files[0], files[0], RECIPE), MeasureOptions(), told.append)
    assert same.distance == pytest.approx(0, abs=1e-6)
    mirrored = compare_only(Comparison(files[1], files[0], RECIPE), MeasureOptions(), told.append)
    assert mirrored.distance == pytest.approx(result.distance, rel=1e-6)
    for subject, line in (
        (tmp_path / "none", "nothing there; give a work directory"),
        (tmp_path, "a folder of images needs --resolution"),
    ):
        with pytest.raises(UserError, match=line):
            compare_only(Comparison(subject, files[0], RECIPE), MeasureOptions(), told.append)


def test_a_work_directory_is_known_by_what_training_leaves(tmp_path: Path) -> None:
    assert not is_run(tmp_path)
    (tmp_path / CHECKPOINTS_DIR).mkdir()
    assert is_run(tmp_path)
    (tmp_path / CHECKPOINTS_DIR).rmdir()
    (tmp_path / RUN_NAME).write_text("{}")
    assert is_run(tmp_path)
