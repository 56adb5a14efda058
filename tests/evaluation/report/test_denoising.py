"""Strips of the way to a sample: which setting, which moments, and that the end is the sample that
is stored.
"""

from pathlib import Path

import numpy as np
import pytest

from evaluation.draw.generate import generate
from evaluation.draw.setting import Setting, sampling_facts, setting_name
from evaluation.report import denoising
from evaluation.report.denoising import choose, denoising_paths, frames
from evaluation.report.pictures import stored_samples
from evaluation.results import Result, Sampling
from flowtrain.state.checkpoint import TrainedModel
from pipelines.grid import tile
from schemas.errors import UserError
from schemas.run import Run
from schemas.sampler import SamplerSettings
from tests.evaluation.conftest import World
from tests.evaluation.results import result


def of(sampling: Sampling) -> Result:
    return result().model_copy(update={"sampling": sampling})


def adaptive(run: Run) -> Run:
    sampler = run.recipe.sampler.model_copy(update={"solver": "dopri5"})
    return run.model_copy(update={"recipe": run.recipe.model_copy(update={"sampler": sampler})})


def test_enough_steps_and_no_more() -> None:
    series = [
        result(500, 4),
        result(20, 4),
        result(5, 4),
        result(50, 4),
        result(30, 1),
        result(0, 4),
    ]

    def chosen(cfg: float) -> int:
        sampling = choose(series, cfg)
        assert sampling is not None
        return sampling.steps

    assert chosen(4) == 20
    assert chosen(1) == 30
    few = choose([result(1, 4), result(5, 4)], 4)
    assert few is not None
    assert few.steps == 5
    assert choose(series, 2) is None
    assert choose([result(0, 4)], 4) is None, "an adaptive solver has no steps"


def test_frames_are_spread_over_the_way_with_both_ends() -> None:
    assert frames(1) == [0, 1]
    assert frames(5) == [0, 1, 2, 3, 4, 5]
    assert frames(70) == [0, 10, 20, 30, 40, 50, 60, 70]


@pytest.mark.parametrize("solver", ["euler", "sde"])
def test_the_end_of_a_strip_is_the_sample_that_is_stored(
    workdir: Path, world: World, trained: TrainedModel, solver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = SamplerSettings(solver, 4, 2.0, cfg_interval=(0.2, 0.9), shift=1.5, seed=3)
    setting = Setting(9, settings, rule="uniform")
    sampling = sampling_facts(trained, setting)
    generate(trained, setting, workdir / "samples" / setting_name(sampling), batch_size=9)
    strips: list[list[np.ndarray]] = []

    def noted(rows: list[np.ndarray], alt: str) -> None:
        tile(rows)
        strips.append(rows)

    monkeypatch.setattr(denoising, "picture", noted)
    paths = denoising_paths(workdir, world.run, [of(sampling)], 2.0)
    seen, predicted = np.array(strips[0]).astype(int), np.array(strips[1]).astype(int)
    assert seen.shape == predicted.shape == (5, 5, 8, 8, 3), "5 samples at 0, 1, 2, 3 and 4 steps"
    stored, _ = stored_samples(workdir, of(sampling), 5)
    assert np.abs(seen[:, -1] - stored).max() <= 1, "stored in float16, drawn in another batch"
    np.testing.assert_array_equal(predicted[:, -1], seen[:, -1])
    assert np.abs(seen[:, 0] - stored).max() > 10, "noise"
    assert np.abs(predicted[:, 0] - seen[:, 0]).max() > 10
    assert paths.times[-1] == "1.00"
    assert float(paths.times[1]) < 0.25, (
        "later for the shift, or for an SDE that stops before the data"
    )
    assert paths.note == f"{solver}, 4 steps, guidance 2"


def test_what_cannot_be_shown_is_told(workdir: Path, world: World, trained: TrainedModel) -> None:
    with pytest.raises(UserError, match="dopri5 chooses its steps for each sample alone"):
        denoising_paths(workdir, adaptive(world.run), [], 1.0)
    missing = sampling_facts(trained, Setting(4, SamplerSettings("euler", 2, 1.0)))
    with pytest.raises(UserError, match="no such dataset"):
        denoising_paths(workdir, world.run, [of(missing)], 1.0)
