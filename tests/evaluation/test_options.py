"""What was typed and the recipe's defaults become settings; what a run cannot do is one line."""

from pathlib import Path
from typing import Any

import pytest

from evaluation.options import DrawOptions, settings_of
from schemas.errors import UserError
from schemas.layout import Layout
from schemas.run import Run
from schemas.sampler import SamplerSettings
from tests.evaluation import scenes

SAMPLER = {"steps": 7, "cfg": 1.5, "cfg_channels": 2, "cfg_interval": [0.1, 0.9], "shift": 3.0}


@pytest.fixture(scope="module")
def pixels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("options") / "pixels"
    scenes.make_dataset(directory, Layout.IMAGE, None)
    return directory


def run_of(directory: Path, **tables: dict[str, Any]) -> Run:
    from schemas.manifest import read_manifest

    return scenes.make_run(directory, read_manifest(directory), **tables)


@pytest.fixture
def run(pixels: Path) -> Run:
    return run_of(pixels, sampler=SAMPLER)


@pytest.fixture
def diffusion(pixels: Path) -> Run:
    return run_of(pixels, objective={"kind": "diffusion"})


def test_what_was_left_out_is_the_recipes(run: Run) -> None:
    (setting,) = settings_of(run, DrawOptions(), None)
    assert setting.sampler == SamplerSettings("euler", 7, 1.5, 2, (0.1, 0.9), 3.0)
    assert (setting.label, setting.rule, setting.frequencies) == (None, "cyclic", None)


def test_what_was_typed_goes_before_it(run: Run) -> None:
    options = DrawOptions(
        steps=(9,),
        cfg=(0.0,),
        solver="heun",
        cfg_channels=3,
        cfg_interval=(0.0, 0.5),
        shift=0.5,
        seed=11,
        class_name="two",
    )
    (setting,) = settings_of(run, options, 5)
    assert setting.sampler == SamplerSettings("heun", 9, 0.0, 3, (0.0, 0.5), 0.5, seed=11)
    assert (setting.num, setting.label) == (5, 2)
    (adaptive,) = settings_of(run, DrawOptions(solver="dopri5", tolerance=0.1), 5)
    assert adaptive.sampler == SamplerSettings("dopri5", 0, 1.5, 2, (0.1, 0.9), tolerance=0.1)


def test_every_pair_of_steps_and_guidance_in_the_order_of_the_tables(run: Run) -> None:
    found = settings_of(run, DrawOptions(steps=(20, 5), cfg=(1, 4)), 5)
    pairs = [(setting.sampler.steps, setting.sampler.cfg) for setting in found]
    assert pairs == [(20, 1), (5, 1), (20, 4), (5, 4)]


def test_how_many_samples_there_are_without_being_told(run: Run) -> None:
    def count(classes: int, **options: Any) -> int:
        names = tuple(f"class {number}" for number in range(classes))
        many = run.model_copy(update={"classes": names})
        return settings_of(many, DrawOptions(**options), None)[0].num

    assert [count(classes) for classes in (1, 3, 20, 1000)] == [10, 30, 200, 200]
    assert count(1000, class_name="class 7") == 10


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (
            {"solver": "dopri5", "steps": (4,)},
            "--solver dopri5 chooses its own steps; give --tolerance rather than --steps",
        ),
        ({"tolerance": 0.1}, "--tolerance is for --solver dopri5; euler takes --steps"),
        (
            {"solver": "dopri5", "shift": 3.0},
            "--solver dopri5 chooses its own steps; leave --shift out",
        ),
        (
            {"cfg_interval": (0.8, 0.2)},
            "--cfg-interval: two times, 0 <= first <= second <= 1, as in 0.1,0.8",
        ),
        (
            {"cfg_interval": (0.8, 1.2)},
            "--cfg-interval: two times, 0 <= first <= second <= 1, as in 0.1,0.8",
        ),
        ({"cfg_channels": 4}, "--cfg-channels 4: the model has 3 channels"),
        (
            {"shift": float("inf")},
            "--cfg, --shift and --tolerance: give finite numbers",
        ),
        ({"cfg": (1.0, float("nan"))}, "--cfg, --shift and --tolerance: give finite numbers"),
        ({"labels": "nothing"}, "--labels nothing: neither cyclic, uniform nor a statistics file"),
        (
            {"labels": "uniform", "class_name": "two"},
            "--labels and --class: give one of them",
        ),
    ],
)
def test_mistakes_are_one_line(run: Run, options: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError) as caught:
        settings_of(run, DrawOptions(**options), None)
    assert str(caught.value) == line


def test_what_a_diffusion_run_cannot_do(diffusion: Run) -> None:
    (setting,) = settings_of(diffusion, DrawOptions(shift=1.0), None)
    assert setting.sampler.solver == "ddim"
    for options, line in (
        (DrawOptions(shift=2.0), "--shift is for a flow; leave it out"),
        (DrawOptions(steps=(5, 1001)), "--steps 1001: the run has only 1000 noise levels"),
        (DrawOptions(solver="euler"), "--solver euler does not go with objective.kind diffusion"),
    ):
        with pytest.raises(UserError) as caught:
            settings_of(diffusion, options, None)
        assert str(caught.value).startswith(line)
