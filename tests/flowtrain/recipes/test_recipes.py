"""The recipes that ship."""

from pathlib import Path

import pytest

from flowtrain.recipes import find_recipe, recipe_names
from schemas.errors import UserError
from schemas.recipes import load_recipe


@pytest.mark.parametrize("name", recipe_names())
def test_every_shipped_recipe_is_valid(name: str):
    load_recipe(find_recipe(name))


@pytest.mark.parametrize("name", ["imagenet256-dit-b", "celebahq256-dit-b"])
def test_the_reference_rows_have_the_reference_settings(name: str):
    recipe = load_recipe(find_recipe(name))
    model, optimizer, train = recipe.model, recipe.optimizer, recipe.train
    assert (model.depth, model.width, model.heads, model.mlp_ratio, model.patch) == (
        12,
        768,
        16,
        4,
        2,
    )
    assert (optimizer.learning_rate, optimizer.beta1, optimizer.beta2, optimizer.weight_decay) == (
        1e-4,
        0.9,
        0.99,
        0,
    )
    assert (train.batch_size, train.steps, train.ema_decay) == (512, 1_000_000, 0.9999)
    assert (recipe.objective.time, recipe.objective.label_drop, recipe.sampler.cfg) == (
        "logit_normal",
        0.1,
        4,
    )


def test_what_the_user_types_wins(tmp_path: Path):
    mine = tmp_path / "mine.toml"
    mine.write_text('[model]\nsize = "B"\nheads = 16\n[train]\nsteps = 1\nbatch_size = 2\n')
    recipe = load_recipe(find_recipe(str(mine)), ["model.depth=2"])
    assert (recipe.model.depth, recipe.model.width, recipe.model.heads) == (2, 768, 16)


def test_an_unknown_recipe_gets_the_nearest_name():
    with pytest.raises(UserError, match="unknown recipe 'digit'; did you mean 'digits'"):
        find_recipe("digit")
    with pytest.raises(UserError, match=r"there are .*digits"):
        find_recipe("zzz")
    with pytest.raises(UserError, match="no such recipe file"):
        find_recipe("nowhere/mine.toml")
