"""Recipe files: overrides, names, mistakes in one line."""

import re

import pytest

from schemas.errors import UserError
from schemas.recipes import format_recipe, load_recipe, make_recipe

BASE = {"model": {"size": "B"}, "train": {"steps": 10, "batch_size": 4}}
DIFFUSION = {**BASE, "objective": {"kind": "diffusion"}}


def test_overrides_win_over_the_recipe_and_keep_their_type():
    recipe = make_recipe(
        BASE, ["train.steps=20", "optimizer.learning_rate=3e-4", "objective.time=uniform"]
    )
    assert (recipe.train.steps, recipe.optimizer.learning_rate, recipe.objective.time) == (
        20,
        3e-4,
        "uniform",
    )


def test_the_kind_may_be_overridden_as_a_size_may():
    """What a file spells out for another kind goes; what is typed beside the override, or says the
    same kind, stays.
    """
    flow = {
        **BASE,
        "model": {"size": "B", "time_scale": 1.0, "output": "velocity"},
        "objective": {"time": "logit_normal", "label_drop": 0.2},
        "sampler": {"solver": "euler", "steps": 7},
    }
    for overrides in (
        ["objective.kind=diffusion"],
        ["sampler.steps=7", "objective.kind=diffusion"],
    ):
        recipe = make_recipe(flow, overrides)
        assert (recipe.model.output, recipe.model.time_scale, recipe.sampler.solver) == (
            "epsilon",
            1000,
            "ddim",
        )
        assert (recipe.objective.label_drop, recipe.sampler.steps) == (0.2, 7)
    for overrides in (
        ["objective.kind=diffusion", "sampler.solver=ddpm"],
        ["sampler.solver=ddpm", "objective.kind=diffusion"],
    ):
        assert make_recipe(flow, overrides).sampler.solver == "ddpm"
    assert make_recipe(flow, ["objective.kind=flow"]).model.time_scale == 1
    spelled = {**DIFFUSION, "sampler": {"solver": "ddpm"}}
    assert make_recipe(spelled, ["objective.kind=diffusion"]).sampler.solver == "ddpm"
    assert make_recipe(spelled, ["objective.kind=flow"]) == make_recipe(BASE)


@pytest.mark.parametrize(
    ("content", "overrides", "message"),
    [
        ({**BASE, "optimiser": {}}, [], r"unknown table \[optimiser\]; did you mean 'optimizer'"),
        (
            {**BASE, "model": {"size": "B", "dept": 2}},
            [],
            "unknown key model.dept; did you mean 'depth'",
        ),
        (BASE, ["train.lerning=1"], "unknown key train.lerning"),
        (BASE, ["steps=1"], "write table.key=value"),
        (BASE, ["train.steps"], "write table.key=value"),
        (BASE, ["train.steps=0"], "train.steps: Input should be greater"),
        (
            BASE,
            ["train.seed=4294967296"],
            "train.seed: Input should be less",
        ),  # the key of 2**32 would be that of 0
        (BASE, ["model.heads=7"], "not divisible by heads"),
        ({"model": {"size": "Q"}, "train": BASE["train"]}, [], "model.size"),
        ({"model": 3, "train": BASE["train"]}, [], "must be a table"),
        ({"model": 3, "train": BASE["train"]}, ["objective.kind=diffusion"], "must be a table"),
        (BASE, ["model.size=[1]"], "model.size: Input should be"),
        (BASE, ["objective.kind=[1]"], "objective.kind: Input should be"),
        (BASE, ["objective.kind=flwo"], "objective.kind: Input should be"),
        (BASE, ["model.width=70", "model.heads=7"], "width 70 must be divisible by 4"),
        (
            DIFFUSION,
            ["objective.time=logit_normal"],
            "objective.time must be uniform for objective.kind diffusion",
        ),
        (
            DIFFUSION,
            ["objective.diffusion_steps=x"],
            "objective.diffusion_steps: Input should be a valid integer",
        ),
        (
            DIFFUSION,
            ["objective.diffusion_steps=20000"],
            "objective.diffusion_steps: Input should be less",
        ),
        (
            DIFFUSION,
            ["sampler.steps=1001"],
            "sampler.steps 1001: objective.diffusion_steps has only 1000 levels; lower it",
        ),
        (BASE, ["objective.beta_end=1"], "objective.beta_end: Input should be less"),
        (BASE, ["train.accumulate=3"], "batch_size 4 is not divisible by accumulate 3"),
        (
            BASE,
            ["train.checkpoint_every=3000", "train.keep_every=100000"],
            r"keep_every 100000 is not divisible by checkpoint_every 3000, .*; try --set "
            r"train.keep_every=99000$",
        ),
        (
            BASE,
            ["train.keep_every=1"],
            r"keep_every 1 is not divisible by .*; try --set train.keep_every=5000$",
        ),
        (
            BASE,
            ["train.ema_extra=[0.9, 1.0]"],
            r"ema_extra \[0.9, 1.0\]: each decay must be in \[0, 1\)",
        ),
        (
            BASE,
            ["train.ema_power=[0.3]"],
            r"ema_power \[0.3\]: each relative width must be in \(0, 0.28\)",
        ),
        (BASE, ["preview.steps=[]"], "steps and cfg must each hold a number"),
        (BASE, ["preview.steps=[0, 4]"], "steps of at least 1"),
        (BASE, ["preview.cfg=[-1.0]"], "cfg of at least 0"),
        (BASE, ["preview.steps=[4, 1000001]"], "steps 1000001: at most 1000000"),
        (BASE, ["sampler.steps=10000000000"], "sampler.steps: Input should be less"),
        (BASE, ["train.steps=2147483648"], "train.steps: Input should be less"),
        (BASE, ["model.width=1000000000"], "model.width: Input should be less"),
        (BASE, ["model.mlp_ratio=1e12"], "model.mlp_ratio: Input should be less"),
        (BASE, ["train.steps=3\nseed=4"], "several lines; give each value its own --set"),
        (BASE, [f"train.steps={'9' * 5000}"], "--set train.steps: the value is too long"),
        (BASE, [f"train.ema_extra={'[' * 3000}"], "--set train.ema_extra: the value is too long"),
    ],
)
def test_mistakes_are_one_line_with_the_nearest_name(content, overrides, message):
    with pytest.raises(UserError, match=message) as error:
        make_recipe(content, overrides)
    assert "\n" not in str(error.value)
    assert "Value error" not in str(error.value)  # pydantic's own word


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("true", "always"), ("false", "never"), ("auto", "auto"), ("always", "always")],
)
def test_mirroring_that_is_typed_is_meant(tmp_path, typed, meant):
    recipe = make_recipe(BASE, [f"train.flip={typed}"])
    assert recipe.train.flip == meant
    assert make_recipe(BASE).train.flip == "auto"
    (tmp_path / "r.toml").write_text(format_recipe(recipe))
    assert f'flip = "{meant}"' in format_recipe(recipe)
    assert load_recipe(tmp_path / "r.toml") == recipe


def annotations() -> dict[str, str]:
    """The type of each key whose value is a number, or several."""
    tables = {name: type(table) for name, table in make_recipe(BASE)}
    found = {
        f"{table}.{key}": str(inner.annotation)
        for table in tables
        for key, inner in tables[table].model_fields.items()
    }
    return {
        name: annotation
        for name, annotation in found.items()
        if re.search(r"\bfloat\b", annotation)
    }


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize(("key", "annotation"), annotations().items())
def test_numbers_are_finite(key, annotation, value):
    text = f"[{value}, {value}]" if "tuple" in annotation else value
    with pytest.raises(UserError, match=f"{key}.*: Input should be a finite number"):
        make_recipe(BASE, [f"{key}={text}"])


def test_mistakes_between_tables_are_told_without_a_place():
    with pytest.raises(UserError) as error:
        make_recipe(BASE, ["sampler.solver=ddim", "model.output=epsilon"], where="mine.toml")
    told = "mine.toml: model.output epsilon does not go with objective.kind flow; "
    assert str(error.value) == told + "use velocity or negative_velocity or data"


def test_files(tmp_path):
    path = tmp_path / "r.toml"
    path.write_text('[model]\nsize = "debug"\n[train]\nsteps = 5\nbatch_size = 2\n')
    assert load_recipe(path, ["train.seed=9"]).train.seed == 9
    path.write_text("[model\n")
    with pytest.raises(UserError, match="not valid TOML"):
        load_recipe(path)
    with pytest.raises(UserError, match="cannot read"):
        load_recipe(tmp_path / "none.toml")
