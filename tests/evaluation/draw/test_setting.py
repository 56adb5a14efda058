"""Settings: the class of a sample, the name of a set, and the command that draws it again."""

import dataclasses
import json
import shlex
from pathlib import Path

import numpy as np
import pytest
from click import Command, Context

from evaluation.draw.setting import (
    Setting,
    equivalent_command,
    run_digest,
    sampling_facts,
    setting_name,
)
from evaluation.options import SampleOptions, settings_of
from flowtrain.cli import main
from flowtrain.state.checkpoint import TrainedModel
from schemas.config import BOOKKEEPING
from schemas.layout import Layout
from schemas.recipes import make_recipe
from schemas.run import Run
from schemas.sampler import SamplerSettings
from tests.evaluation import scenes
from tests.evaluation.tiny import CLASSES

EULER = SamplerSettings("euler", 2, 1.0)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Of a dataset of pixels, with a sampler of its own in the recipe."""
    directory = tmp_path_factory.mktemp("setting") / "pixels"
    manifest = scenes.make_dataset(directory, Layout.IMAGE, None)
    return scenes.make_run(directory, manifest, sampler={"shift": 2.0, "cfg_interval": [0, 0.5]})


@pytest.fixture(scope="module")
def model(run: Run) -> TrainedModel:
    return scenes.trained_model(run)


# Classes


def labels(setting: Setting, *cuts: int, classes: int = 4) -> list[int]:
    """Of all samples, asked for in pieces."""
    parts = np.split(np.arange(setting.num), cuts)
    found = [setting.labels(part, range(classes)) for part in parts]
    assert all(part.dtype == np.int32 for part in found)
    return np.concatenate(found).tolist()


def test_classes_in_turn_or_all_the_same() -> None:
    assert labels(Setting(10, EULER), 3) == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]
    assert labels(Setting(3, EULER, label=2)) == [2, 2, 2]


@pytest.mark.parametrize("frequencies", [None, (1.0, 0.0, 5.0, 2.0), (0.0, 3.0, 0.0, 0.0)])
def test_drawn_classes_follow_from_seed_and_number_alone(
    frequencies: tuple[float, ...] | None,
) -> None:
    def of(num: int, seed: int, scale: float = 1.0) -> Setting:
        scaled = None if frequencies is None else tuple(scale * each for each in frequencies)
        sampler = dataclasses.replace(EULER, seed=seed)
        return Setting(num, sampler, rule="uniform", frequencies=scaled)

    whole = labels(of(4000, 7))
    assert labels(of(4000, 7), 1, 2, 999) == whole
    assert labels(of(100, 7)) == whole[:100]
    assert labels(of(4000, 7, scale=1000.0)) == whole
    weights = np.array(frequencies or (1.0,) * 4)
    share = weights / weights.sum()
    deviation = np.sqrt(4000 * share * (1 - share))
    counts = np.bincount(whole, minlength=4)
    assert (np.abs(counts - 4000 * share) <= 5 * deviation).all(), counts
    if deviation.any():
        assert labels(of(4000, 8)) != whole


def test_rules_pass_over_classes_without_records() -> None:
    """As they draw of fewer classes; one that is asked for by name is drawn."""
    some = [0, 2, 3]
    numbers = np.arange(300)
    for rule in ("cyclic", "uniform"):
        drawn = Setting(300, EULER, rule=rule).labels(numbers, some)
        fewer = Setting(300, EULER, rule=rule).labels(numbers, range(3))
        assert drawn.dtype == np.int32
        assert drawn.tolist() == [some[number] for number in fewer]
    counted = Setting(300, EULER, rule="frequencies", frequencies=(1.0, 9.0, 0.0, 1.0))
    assert set(counted.labels(numbers, some).tolist()) == {0, 3}
    assert set(Setting(9, EULER, label=1).labels(numbers, some).tolist()) == {1}


def test_facts_tell_rules_apart() -> None:
    names = ("ant", "bee")
    settings = [
        Setting(3, EULER),
        Setting(3, EULER, rule="uniform"),
        Setting(3, EULER, label=1),
        Setting(3, EULER, rule="frequencies", frequencies=(1.0, 2.0)),
        Setting(3, EULER, rule="frequencies", frequencies=(2.0, 1.0)),
    ]
    facts = [setting.labels_fact(names) for setting in settings]
    assert facts[:3] == ["cyclic", "uniform", "bee"]
    assert len(set(facts)) == 5
    assert facts[3].startswith("frequencies ")


# Names and commands


def test_names_and_commands_tell_settings_apart(model: TrainedModel) -> None:
    base = Setting(5, SamplerSettings("euler", 2, 1.0))
    assert base.sampler.nfe == 2
    settings = [
        base,
        Setting(6, SamplerSettings("euler", 2, 1.0)),
        Setting(5, SamplerSettings("euler", 3, 1.0)),
        Setting(5, SamplerSettings("euler", 2, 1.5)),
        Setting(5, SamplerSettings("euler", 2, 1.0, cfg_channels=3)),
        Setting(5, SamplerSettings("euler", 2, 1.0), label=1),
        Setting(5, SamplerSettings("euler", 2, 1.0, seed=1)),
        Setting(5, SamplerSettings("ddpm", 2, 1.0)),
    ]
    facts = [sampling_facts(model, setting) for setting in settings]
    facts.append(sampling_facts(dataclasses.replace(model, weights="ema0.999"), base))
    assert setting_name(facts[-1]) == "step3-ema0.999-euler2-cfg1-seed0-n5"
    assert "--weights ema0.999" in equivalent_command(facts[-1], model.run.recipe)
    assert len({setting_name(fact) for fact in facts}) == len(facts)
    assert len({equivalent_command(fact, model.run.recipe) for fact in facts}) == len(facts)
    assert equivalent_command(facts[5], model.run.recipe).endswith("--class one")


SETTINGS = [
    Setting(5, EULER),
    Setting(7, SamplerSettings("heun", 3, 2.5, seed=9), label=2),
    Setting(5, SamplerSettings("ddpm", 2, 0.0, cfg_channels=2, shift=2.0), rule="uniform"),
    Setting(5, SamplerSettings("sde", 4, 4.0, cfg_interval=(0.25, 0.5), shift=1.0)),
    Setting(5, SamplerSettings("dopri5", 0, 3.0, tolerance=0.001)),
    Setting(
        5,
        SamplerSettings("euler", 2, 1.0, cfg_interval=(0.0, 0.5)),
        rule="frequencies",
        frequencies=(10.0, 0.0, 30.0),
    ),
]


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.sampler.solver)
def test_the_command_of_a_setting_asks_for_this_setting(
    setting: Setting, model: TrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    counts = np.array([10, 0, 30])
    with open("REFERENCE", "wb") as file:
        np.savez(file, mu=np.zeros(2), sigma=np.eye(2), labels=counts, classes=np.array(CLASSES))
    line = equivalent_command(sampling_facts(model, setting), model.run.recipe)
    program, name, *words = shlex.split(line)
    assert (program, name, *words[:2]) == ("flowtrain", "sample", "WORKDIR", "OUT")
    command = main.get_command(Context(main), name)
    assert isinstance(command, Command)
    options = SampleOptions(**command.make_context(name, words).params)
    assert (options.step, options.weights) == (model.step, model.weights)
    assert settings_of(model.run, options, options.num) == [setting]


def test_the_run_digest_ignores_bookkeeping_only(run: Run) -> None:
    def changed(table: str, **values: object) -> str:
        part = getattr(run.recipe, table).model_copy(update=values)
        return run_digest(
            run.model_copy(update={"recipe": run.recipe.model_copy(update={table: part})})
        )

    assert changed("train", steps=99) == run_digest(run)
    for name in BOOKKEEPING:
        assert changed("train", **{name: 7}) == run_digest(run), name
    assert changed("sampler", steps=7, solver="ddpm") == run_digest(run)
    assert changed("preview", every=7, distance_samples=100) == run_digest(run)
    assert changed("model", latent=(4, 4, 4), classes=3) == run_digest(run)
    assert changed("optimizer", schedule="cosine") != run_digest(run)
    for name, value in {
        "seed": 1,
        "batch_size": 8,
        "holdout": 3,
        "overfit": 2,
        "ema_decay": 0.5,
    }.items():
        assert changed("train", **{name: value}) != run_digest(run), name
    for name, value in {"depth": 3, "time_scale": 1.0, "output": "data", "qk_norm": True}.items():
        assert changed("model", **{name: value}) != run_digest(run), name
    diffusion = {
        "model": {"size": "debug"},
        "train": {"steps": 3, "batch_size": 4},
        "objective": {"kind": "diffusion"},
    }
    assert run_digest(run.model_copy(update={"recipe": make_recipe(diffusion)})) != run_digest(run)
    assert json.dumps(run_digest(run))
