"""Which metrics are computed: asked for by name, possible under a protocol, enough samples."""

from pathlib import Path

import numpy as np
import pytest

from evaluation.features.measure import Measured
from evaluation.metrics import frechet_distance
from evaluation.protocols import EvaluationProtocol
from evaluation.score.groups import (
    GROUPS,
    choose,
    lacking,
    needs_reference_rows,
    needs_rows,
    score,
    with_reference,
)
from schemas.errors import UserError
from schemas.statistics import Gaussian, ScoreSplits
from tests.evaluation.results import PROTOCOL, measured

ADM = PROTOCOL.model_copy(update={"spatial": True, "splits": "consecutive"})
SHUFFLED = PROTOCOL.model_copy(update={"splits": "shuffled"})
MANY = 10_000


@pytest.mark.parametrize(
    ("names", "protocol", "samples", "chosen"),
    [
        ([], PROTOCOL, MANY, ()),
        ([], ADM, MANY, ("sfid", "is")),
        ([], SHUFFLED, 9, ()),
        ([], SHUFFLED, 10, ("is",)),
        (["dc", "pr"], PROTOCOL, 6, ("pr", "dc")),
        (["all"], PROTOCOL, MANY, ("pr", "dc", "kid", "uncertainty")),
        (["all"], ADM, MANY, tuple(GROUPS)),
        (["all"], ADM, 5, ("sfid", "is", "pr")),
        (["all", "pr"], PROTOCOL, 40, ("pr", "dc", "uncertainty")),
    ],
)
def test_groups_in_the_order_of_the_table(
    names: list[str], protocol: EvaluationProtocol, samples: int, chosen: tuple[str, ...]
) -> None:
    assert choose(names, protocol, samples) == chosen


@pytest.mark.parametrize(
    ("names", "protocol", "samples", "told"),
    [
        (["fid"], ADM, MANY, r"--metrics fid: unknown; known are sfid, is, .* and all"),
        (["sfid"], PROTOCOL, MANY, "protocol tiny has none; take --protocol adm"),
        (["is"], SHUFFLED, 9, "at least 10 samples, not 9"),
        (["pr", "kid"], PROTOCOL, 999, "--metrics kid: needs at least 1000 samples, not 999"),
        (["all", "dc"], PROTOCOL, 5, "--metrics dc: needs at least 6 samples, not 5"),
    ],
)
def test_what_cannot_be_had_is_refused(
    names: list[str], protocol: EvaluationProtocol, samples: int, told: str
) -> None:
    with pytest.raises(UserError, match=told):
        choose(names, protocol, samples)


def test_what_all_leaves_out_is_told() -> None:
    told: list[str] = []
    choose(["all"], PROTOCOL, 5, told.append)
    assert told == ["left out for want of samples: dc (6), kid (1000), uncertainty (40)"]
    choose([], PROTOCOL, 5, told.append)
    assert len(told) == 1


@pytest.mark.parametrize(("samples", "warned"), [(40, False), (11, None), (10, None)])
def test_subsets_smaller_than_the_features_are_warned_of(samples: int, warned: bool | None) -> None:
    """The line in 1/n begins at half of the samples; the tiny extractor has five features."""
    told: list[str] = []
    narrow = PROTOCOL.model_copy(update={"dim": 20})
    if warned is None:
        with pytest.raises(UserError):
            choose(["uncertainty"], narrow, samples, told.append)
        return
    assert choose(["uncertainty"], PROTOCOL, samples, told.append) == ("uncertainty",)
    assert bool(told) == warned
    choose(["uncertainty"], narrow, samples, told.append)
    assert told[-1].endswith("use at least 42 samples")


@pytest.fixture
def few(tmp_path: Path) -> Measured:
    return measured(tmp_path / "few.npz", np.random.default_rng(0).normal(size=(5, 3)))


def test_a_reference_that_lacks_something_is_refused_or_told(few: Measured) -> None:
    told: list[str] = []
    every = tuple(GROUPS)
    assert with_reference(every, ["all"], few, told.append) == ("is", "pr", "uncertainty")
    (line,) = told
    assert line.startswith(f"{few.file}: left out")
    assert "sfid (spatial features), dc (6 images), kid (1000 images)" in line
    with pytest.raises(UserError, match="5 images; --metrics dc needs at least 6"):
        with_reference(every, ["dc"], few)
    with pytest.raises(UserError, match="holds no spatial features, so no sFID"):
        with_reference(every, ["sfid"], few)
    assert with_reference(every, [], few, told.append) == ("is", "pr", "uncertainty")
    assert len(told) == 1, "nothing was asked for, so nothing is missed"


def test_which_groups_need_rows() -> None:
    assert [needs_rows([name]) for name in GROUPS] == [False, False, True, True, True, True]
    found = [needs_reference_rows([name]) for name in GROUPS]
    assert found == [False, False, True, True, True, False]


def test_what_is_known_is_not_computed_again() -> None:
    known = {"precision": 1.0, "recall": 1.0, "density": 1.0}
    assert lacking(("pr", "dc", "kid"), known) == ("dc", "kid")


def test_metrics_are_computed_from_the_right_parts(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    first, second = rng.normal(size=(2, 8, 3))
    spatial = [Gaussian(rng.normal(size=2), np.diag(rng.uniform(1, 2, 2))) for _ in range(2)]
    p = np.array([[0.5, 0.5], [1.0, 1.0]])  # sums of one and of two images
    plogp = np.array([np.log(0.5), 2 * np.log(0.5)])
    splits = ScoreSplits(np.array([1, 2]), plogp, p)
    subject = measured(tmp_path / "a.npz", first, spatial=spatial[0], scores=splits)
    reference = measured(tmp_path / "b.npz", second, spatial=spatial[1])
    found = score(("sfid", "is", "pr"), subject, reference)
    assert list(found) == ["sfid", "inception_score", "inception_score_std", "precision", "recall"]
    assert found["sfid"] == frechet_distance(*spatial[0], *spatial[1])
    assert found["inception_score"] == pytest.approx(1.0), "every image is as the mean"
    assert (found["precision"], found["recall"]) == _inside(first, second, 3)
    with pytest.raises(UserError, match="holds no class probabilities"):
        score(("is",), reference, subject)


def _inside(samples: np.ndarray, real: np.ndarray, k: int) -> tuple[float, float]:
    """Shares of the one set within the balls to the k-th neighbours of the other."""

    def covered(points: np.ndarray, centres: np.ndarray) -> float:
        distances = np.linalg.norm(centres[:, None] - centres[None], axis=-1)
        radii = np.sort(distances, axis=1)[:, k]
        apart = np.linalg.norm(points[:, None] - centres[None], axis=-1)
        return float((apart <= radii).any(axis=1).mean())

    return covered(samples, real), covered(real, samples)
