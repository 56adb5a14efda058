from typing import get_args

import pytest

from schemas.config import (
    BOOKKEEPING,
    OUTPUTS,
    SIZES,
    SOLVERS,
    ModelConfig,
    Recipe,
    TrainConfig,
    choose_solver,
)
from schemas.errors import UserError
from schemas.recipes import make_recipe
from schemas.sampler import SamplerConfig

BASE = {"model": {"size": "B"}, "train": {"steps": 10, "batch_size": 4}}
DIFFUSION = {**BASE, "objective": {"kind": "diffusion"}}


def test_a_size_fills_in_only_what_was_not_typed():
    model = make_recipe({**BASE, "model": {"size": "B", "heads": 16}}).model
    assert (model.depth, model.width, model.heads) == (12, 768, 16)
    model = make_recipe(BASE, ["model.depth=3"]).model
    assert (model.depth, model.width) == (3, SIZES["B"].width)


def test_a_typed_size_wins_over_what_the_recipe_spells_out():
    spelled = {**BASE, "model": {"depth": 12, "width": 768, "heads": 16, "patch": 4}}
    model = make_recipe(spelled, ["model.size=XL"]).model
    assert (model.depth, model.width, model.heads, model.patch) == (*SIZES["XL"], 4)
    for overrides in (["model.size=XL", "model.depth=2"], ["model.depth=2", "model.size=XL"]):
        model = make_recipe(spelled, overrides).model
        assert (model.depth, model.width) == (2, SIZES["XL"].width)


@pytest.mark.parametrize(
    "overrides",
    [
        ["sampler.cfg=1.5"],
        ["objective.kind=diffusion", "objective.diffusion_steps=100", "sampler.solver=ddpm"],
        ["model.size=XL", "model.scan=false", "model.latent=[32, 32, 4]", "model.classes=1000"],
        [
            "train.ema_extra=[0.999, 0.99]",
            "train.ema_power=[0.05, 0.1]",
            "preview.every=5",
            "preview.steps=[1]",
        ],
    ],
)
def test_json_round_trip(overrides):
    recipe = make_recipe(BASE, overrides)
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


def test_layers_are_scanned_from_depth_24_unless_told_otherwise():
    def scan(*overrides):
        return make_recipe(BASE, overrides).model.scan

    assert [scan(f"model.size={size}") for size in ("debug", "S", "B", "L", "XL")] == [
        False,
        False,
        False,
        True,
        True,
    ]
    assert scan("model.depth=24")
    assert not scan("model.depth=23")
    assert not scan("model.size=XL", "model.depth=2")
    assert not scan("model.size=XL", "model.scan=false")
    assert scan("model.scan=true")
    # TOML may say 24.0
    assert ModelConfig.model_validate({"depth": 24.0, "width": 8, "heads": 2}).scan


# What follows from the kind of objective


def test_diffusion_fills_in_its_conventions():
    recipe = make_recipe(DIFFUSION)
    model = recipe.model
    assert (model.output, model.time_direction, model.time_offset, model.time_integer) == (
        "epsilon",
        "to_noise",
        -1,
        True,
    )
    assert (model.time_scale, recipe.objective.time, recipe.sampler.solver) == (
        1000,
        "uniform",
        "ddim",
    )
    assert make_recipe(DIFFUSION, ["objective.diffusion_steps=100"]).model.time_scale == 100
    flow = make_recipe(BASE)
    model = flow.model
    assert (model.output, model.time_direction, model.time_offset, model.time_integer) == (
        "velocity",
        "to_data",
        0,
        False,
    )
    assert (model.time_scale, flow.objective.time, flow.sampler.solver) == (
        1000,
        "logit_normal",
        "euler",
    )


def test_what_is_typed_wins_over_what_follows_from_diffusion():
    content = {
        "model": {"size": "B", "output": "data", "time_scale": 1.0, "time_integer": False},
        "train": BASE["train"],
        "objective": {"kind": "diffusion", "diffusion_steps": 200},
        "sampler": {"solver": "ddpm"},
    }
    recipe = make_recipe(content)
    model = recipe.model
    assert (model.output, model.time_scale, model.time_integer, recipe.sampler.solver) == (
        "data",
        1,
        False,
        "ddpm",
    )
    assert (model.time_direction, model.time_offset) == ("to_noise", -1)  # not typed
    assert (
        make_recipe(DIFFUSION, ["sampler.solver=ddpm", "model.output=data"]).sampler.solver
        == "ddpm"
    )


@pytest.mark.parametrize("kind", ["flow", "diffusion"])
def test_each_kind_goes_with_its_outputs_and_solvers_only(kind):
    content = {**BASE, "objective": {"kind": kind}}
    for allowed, of, key in (
        (OUTPUTS, ModelConfig, "model.output"),
        (SOLVERS, SamplerConfig, "sampler.solver"),
    ):
        every = get_args(of.model_fields[key.split(".")[1]].annotation)
        assert set(allowed[kind]) <= set(every)
        for value in every:
            if value in allowed[kind]:
                make_recipe(content, [f"{key}={value}"])
            else:
                with pytest.raises(
                    UserError, match=f"{key} {value} does not go with objective.kind {kind}; use "
                ):
                    make_recipe(content, [f"{key}={value}"])


def test_a_command_takes_the_solver_of_the_recipe_or_one_that_goes_with_it():
    recipe = make_recipe(DIFFUSION)
    assert choose_solver(recipe, None) == "ddim"
    assert choose_solver(recipe, "ddpm") == "ddpm"
    with pytest.raises(
        UserError,
        match=r"--solver euler does not go with objective.kind diffusion; use ddim or ddpm",
    ):
        choose_solver(recipe, "euler")
    assert choose_solver(make_recipe(BASE), "ddpm") == "ddpm"


def test_there_are_no_more_steps_than_noise_levels():
    assert make_recipe(DIFFUSION, ["sampler.steps=1000"]).most_steps == 1000
    assert make_recipe(BASE, ["sampler.steps=5000"]).most_steps == 1_000_000
    few = ["objective.diffusion_steps=20", "sampler.steps=20"]
    assert make_recipe(DIFFUSION, few).preview.steps[-1] == 32  # never drawn
    with pytest.raises(
        UserError, match=r"preview.steps 32: objective.diffusion_steps has only 20 levels; lower it"
    ):
        make_recipe(DIFFUSION, [*few, "preview.every=10"])


def test_bookkeeping_is_part_of_the_training_table():
    assert set(BOOKKEEPING) < TrainConfig.model_fields.keys()
    assert len(set(BOOKKEEPING)) == len(BOOKKEEPING)


def test_a_prediction_of_the_data_has_no_velocity_at_the_end():
    content = {**BASE, "model": {"size": "B", "output": "data"}}
    assert make_recipe(content, ["sampler.solver=midpoint"]).sampler.solver == "midpoint"
    with pytest.raises(UserError, match=r"sampler\.solver heun asks for the velocity at t = 1"):
        make_recipe(content, ["sampler.solver=heun"])
    with pytest.raises(
        UserError, match=r"--solver dopri5 asks for the velocity at t = 1.*; take midpoint"
    ):
        choose_solver(make_recipe(content), "dopri5")


def test_mirroring_keeps_its_old_words_on_disk():
    """`true` meant "auto" before there was a choice; runs of then give their bytes again."""
    for on_disk, word in ((True, "auto"), (False, "never"), ("always", "always")):
        train = TrainConfig.model_validate({"steps": 1, "batch_size": 1, "flip": on_disk})
        assert train.flip == word
        assert train.model_dump(mode="json")["flip"] == on_disk
        assert train.model_dump()["flip"] == word
