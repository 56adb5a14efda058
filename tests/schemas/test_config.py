import pytest

from schemas.config import (
    BOOKKEEPING,
    OUTPUTS,
    SIZES,
    SOLVERS,
    ModelConfig,
    Recipe,
    SamplerConfig,
    TrainConfig,
    choose_solver,
    load_recipe,
    make_recipe,
)
from schemas.errors import UserError

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


def test_overrides_win_over_the_recipe_and_keep_their_type():
    recipe = make_recipe(BASE, ["train.steps=20", "optimizer.learning_rate=3e-4", "objective.time=uniform"])
    assert (recipe.train.steps, recipe.optimizer.learning_rate, recipe.objective.time) == (20, 3e-4, "uniform")


@pytest.mark.parametrize(
    "overrides",
    [
        ["sampler.cfg=1.5"],
        ["objective.kind=diffusion", "objective.diffusion_steps=100", "sampler.solver=ddpm"],
        ["model.size=XL", "model.scan=false", "model.latent=[32, 32, 4]", "model.classes=1000"],
        ["train.ema_extra=[0.999, 0.99]", "train.ema_power=[0.05, 0.1]", "preview.every=5", "preview.steps=[1]"],
    ],
)
def test_json_round_trip(overrides):
    recipe = make_recipe(BASE, overrides)
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


def test_layers_are_scanned_from_depth_24_unless_told_otherwise():
    def scan(*overrides):
        return make_recipe(BASE, overrides).model.scan

    assert [scan(f"model.size={size}") for size in ("debug", "S", "B", "L", "XL")] == [False, False, False, True, True]
    assert scan("model.depth=24")
    assert not scan("model.depth=23")
    assert not scan("model.size=XL", "model.depth=2")
    assert not scan("model.size=XL", "model.scan=false")
    assert scan("model.scan=true")
    assert ModelConfig.model_validate({"depth": 24.0, "width": 8, "heads": 2}).scan  # TOML may say 24.0


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
    assert (model.time_scale, recipe.objective.time, recipe.sampler.solver) == (1000, "uniform", "ddim")
    assert make_recipe(DIFFUSION, ["objective.diffusion_steps=100"]).model.time_scale == 100
    flow = make_recipe(BASE)
    model = flow.model
    assert (model.output, model.time_direction, model.time_offset, model.time_integer) == (
        "velocity",
        "to_data",
        0,
        False,
    )
    assert (model.time_scale, flow.objective.time, flow.sampler.solver) == (1000, "logit_normal", "euler")


def test_what_is_typed_wins_over_what_follows_from_diffusion():
    content = {
        "model": {"size": "B", "output": "data", "time_scale": 1.0, "time_integer": False},
        "train": BASE["train"],
        "objective": {"kind": "diffusion", "diffusion_steps": 200},
        "sampler": {"solver": "ddpm"},
    }
    recipe = make_recipe(content)
    model = recipe.model
    assert (model.output, model.time_scale, model.time_integer, recipe.sampler.solver) == ("data", 1, False, "ddpm")
    assert (model.time_direction, model.time_offset) == ("to_noise", -1)  # not typed
    assert make_recipe(DIFFUSION, ["sampler.solver=ddpm", "model.output=data"]).sampler.solver == "ddpm"


def test_the_kind_may_be_overridden_as_a_size_may():
    """What a file spells out for another kind goes; what is typed beside the override, or says the same kind, stays."""
    flow = {
        **BASE,
        "model": {"size": "B", "time_scale": 1.0, "output": "velocity"},
        "objective": {"time": "logit_normal", "label_drop": 0.2},
        "sampler": {"solver": "euler", "steps": 7},
    }
    for overrides in (["objective.kind=diffusion"], ["sampler.steps=7", "objective.kind=diffusion"]):
        recipe = make_recipe(flow, overrides)
        assert (recipe.model.output, recipe.model.time_scale, recipe.sampler.solver) == ("epsilon", 1000, "ddim")
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


@pytest.mark.parametrize("kind", ["flow", "diffusion"])
def test_each_kind_goes_with_its_outputs_and_solvers_only(kind):
    content = {**BASE, "objective": {"kind": kind}}
    for allowed, of, key in ((OUTPUTS, ModelConfig, "model.output"), (SOLVERS, SamplerConfig, "sampler.solver")):
        every = of.model_fields[key.split(".")[1]].annotation.__args__
        assert set(allowed[kind]) <= set(every)
        for value in every:
            if value in allowed[kind]:
                make_recipe(content, [f"{key}={value}"])
            else:
                with pytest.raises(UserError, match=f"{key} {value} does not go with objective.kind {kind}; use "):
                    make_recipe(content, [f"{key}={value}"])


def test_a_command_takes_the_solver_of_the_recipe_or_one_that_goes_with_it():
    recipe = make_recipe(DIFFUSION)
    assert choose_solver(recipe, None) == "ddim"
    assert choose_solver(recipe, "ddpm") == "ddpm"
    with pytest.raises(UserError, match=r"--solver euler does not go with objective.kind diffusion; use ddim or ddpm"):
        choose_solver(recipe, "euler")
    assert choose_solver(make_recipe(BASE), "ddpm") == "ddpm"


def test_there_are_no_more_steps_than_noise_levels():
    assert make_recipe(DIFFUSION, ["sampler.steps=1000"]).most_steps == 1000
    assert make_recipe(BASE, ["sampler.steps=5000"]).most_steps == float("inf")
    few = ["objective.diffusion_steps=20", "sampler.steps=20"]
    assert make_recipe(DIFFUSION, few).preview.steps[-1] == 32  # never drawn
    with pytest.raises(UserError, match=r"preview.steps 32: objective.diffusion_steps has only 20 levels; lower it"):
        make_recipe(DIFFUSION, [*few, "preview.every=10"])


def test_bookkeeping_is_part_of_the_training_table():
    assert set(BOOKKEEPING) < TrainConfig.model_fields.keys()
    assert len(set(BOOKKEEPING)) == len(BOOKKEEPING)


@pytest.mark.parametrize(
    ("content", "overrides", "message"),
    [
        ({**BASE, "optimiser": {}}, [], r"unknown table \[optimiser\]; did you mean 'optimizer'"),
        ({**BASE, "model": {"size": "B", "dept": 2}}, [], "unknown key model.dept; did you mean 'depth'"),
        (BASE, ["train.lerning=1"], "unknown key train.lerning"),
        (BASE, ["steps=1"], "write table.key=value"),
        (BASE, ["train.steps"], "write table.key=value"),
        (BASE, ["train.steps=0"], "train.steps: Input should be greater"),
        (BASE, ["train.seed=4294967296"], "train.seed: Input should be less"),  # the key of 2**32 would be that of 0
        (BASE, ["model.heads=7"], "not divisible by heads"),
        ({"model": {"size": "Q"}, "train": BASE["train"]}, [], "model.size"),
        ({"model": 3, "train": BASE["train"]}, [], "must be a table"),
        ({"model": 3, "train": BASE["train"]}, ["objective.kind=diffusion"], "must be a table"),
        (BASE, ["model.size=[1]"], "model.size: Input should be"),
        (BASE, ["objective.kind=[1]"], "objective.kind: Input should be"),
        (BASE, ["objective.kind=flwo"], "objective.kind: Input should be"),
        (BASE, ["model.width=70", "model.heads=7"], "width 70 must be divisible by 4"),
        (DIFFUSION, ["objective.time=logit_normal"], "objective.time must be uniform for objective.kind diffusion"),
        (DIFFUSION, ["objective.diffusion_steps=x"], "objective.diffusion_steps: Input should be a valid integer"),
        (DIFFUSION, ["objective.diffusion_steps=20000"], "objective.diffusion_steps: Input should be less"),
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
            r"keep_every 100000 is not divisible by checkpoint_every 3000, .*; try --set train.keep_every=99000$",
        ),
        (BASE, ["train.keep_every=1"], r"keep_every 1 is not divisible by .*; try --set train.keep_every=5000$"),
        (BASE, ["train.ema_extra=[0.9, 1.0]"], r"ema_extra \[0.9, 1.0\]: each decay must be in \[0, 1\)"),
        (BASE, ["train.ema_power=[0.3]"], r"ema_power \[0.3\]: each relative width must be in \(0, 0.28\)"),
        (BASE, ["preview.steps=[]"], "steps and cfg must each hold a number"),
        (BASE, ["preview.steps=[0, 4]"], "steps of at least 1"),
        (BASE, ["preview.cfg=[-1.0]"], "cfg of at least 0"),
    ],
)
def test_mistakes_are_one_line_with_the_nearest_name(content, overrides, message):
    with pytest.raises(UserError, match=message) as error:
        make_recipe(content, overrides)
    assert "\n" not in str(error.value)
    assert "Value error" not in str(error.value)  # pydantic's own word


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


def test_a_prediction_of_the_data_has_no_velocity_at_the_end():
    content = {**BASE, "model": {"size": "B", "output": "data"}}
    assert make_recipe(content, ["sampler.solver=midpoint"]).sampler.solver == "midpoint"
    with pytest.raises(UserError, match=r"sampler\.solver heun asks for the velocity at t = 1"):
        make_recipe(content, ["sampler.solver=heun"])
    with pytest.raises(UserError, match=r"--solver dopri5 asks for the velocity at t = 1.*; take midpoint"):
        choose_solver(make_recipe(content), "dopri5")
