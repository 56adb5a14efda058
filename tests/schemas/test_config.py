import pytest

from schemas.config import SIZES, Recipe, load_recipe, make_recipe
from schemas.errors import UserError

BASE = {"model": {"size": "B"}, "train": {"steps": 10, "batch_size": 4}}


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


def test_json_round_trip():
    recipe = make_recipe(BASE, ["sampler.cfg=1.5"])
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


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
    ],
)
def test_mistakes_are_one_line_with_the_nearest_name(content, overrides, message):
    with pytest.raises(UserError, match=message) as error:
        make_recipe(content, overrides)
    assert "\n" not in str(error.value)


def test_files(tmp_path):
    path = tmp_path / "r.toml"
    path.write_text('[model]\nsize = "debug"\n[train]\nsteps = 5\nbatch_size = 2\n')
    assert load_recipe(path, ["train.seed=9"]).train.seed == 9
    path.write_text("[model\n")
    with pytest.raises(UserError, match="not valid TOML"):
        load_recipe(path)
    with pytest.raises(UserError, match="cannot read"):
        load_recipe(tmp_path / "none.toml")
