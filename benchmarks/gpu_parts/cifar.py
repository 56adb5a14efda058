"""A flow and its diffusion twin on CIFAR-10, trained as long as the part may, and their FIDs.

A later call goes on from the checkpoints of an earlier one and measures again. Both are trained to the same step. What
is measured first matters most: 100 steps without guidance, then with the recipe's, then 20 steps. Distances are to the
images that were trained on, at the resolution of the autoencoder's input, under the protocol `adm`.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.gpu_parts.cifar_data import encode, read_pixels
from benchmarks.gpu_parts.cifar_score import Scorer, load
from benchmarks.gpu_parts.cifar_train import Progress, make_run, train
from benchmarks.gpu_parts.part import Context
from flowtrain.recipes import find_recipe
from schemas.config import Recipe
from schemas.recipes import load_recipe

STEPS = (100, 20)
_RECIPES = {"flow": "recipe", "diffusion": "diffusion_recipe"}  # by kind, the option that names it
# An average that forgets its beginning within a run of minutes, beside the recipe's, which does not.
_SHORT = ("train.ema_extra=[0.999]",)
# In miniature: the same recipes, with a network of one block.
_TINY = (
    *("model.depth=1", "model.width=32", "model.heads=2", "model.dtype=float32"),
    *("train.batch_size=8", "train.holdout=0", "train.log_every=2"),
)
_TINY_STEPS = 3  # in one call


def run(context: Context) -> None:
    """Data, training, distances; each setting is a row as soon as it is measured."""
    resolution = int(context.options["resolution"])
    begin = time.perf_counter()
    pixels, labels, classes = read_pixels(context, resolution)
    latents = encode(context, resolution, pixels, labels, classes)
    context.emit(of="data", records=len(labels), latent=list(latents.shape), seconds=time.perf_counter() - begin)
    begin = time.perf_counter()
    scorer = Scorer(context, latents, pixels)
    context.emit(of="reference", metric=scorer.metric, seconds=time.perf_counter() - begin)
    del pixels

    recipes = {kind: _recipe(context, option) for kind, option in _RECIPES.items()}
    reached: dict[str, Progress] = {}
    reserve = 2 * float(context.options["reserve"])
    for left, (kind, recipe) in zip((2, 1), recipes.items(), strict=True):
        until = _until(context, reserve, left, max((each.step for each in reached.values()), default=None))
        workdir = _workdir(context, kind)
        reached[kind] = train(make_run(recipe, latents), latents, workdir, until)
        _tell_training(context, kind, recipe, reached[kind])
    if reserve > 0:
        _score(context, scorer, recipes)
    for kind, progress in reached.items():
        if progress.step < recipes[kind].train.steps:
            context.unfinished(f"{kind} is at step {progress.step} of {recipes[kind].train.steps}")


def _recipe(context: Context, option: str) -> Recipe:
    overrides = [*_SHORT, *(_TINY if context.tiny else ()), *context.options["set"]]
    return load_recipe(find_recipe(context.options[option]), overrides)


def _workdir(context: Context, kind: str) -> Path:
    return context.work / "cifar" / kind


def _until(context: Context, reserve: float, left: int, step: int | None) -> Callable[[int], bool]:
    """When a run pauses: its share of the time is over, or the step of its twin is reached."""
    seconds = max(context.left - reserve, 0.0) / left
    end = time.time() + seconds
    calls = 0

    def over(now: int) -> bool:
        nonlocal calls
        calls += 1
        if step is not None and now >= step:
            return True
        if context.tiny:
            return calls > _TINY_STEPS
        return time.time() > end

    return over


def _tell_training(context: Context, kind: str, recipe: Recipe, progress: Progress) -> None:
    images = progress.step * recipe.train.batch_size
    row: dict[str, Any] = {"of": f"training, {kind}", "step": progress.step, "images": images, "loss": progress.loss}
    context.emit(**row, images_per_second=progress.rate)


def _score(context: Context, scorer: Scorer, recipes: dict[str, Recipe]) -> None:
    count = 16 if context.tiny else int(context.options["samples"])
    context.emit(**scorer.reconstructions(count))
    models = {kind: load(_workdir(context, kind), context.options["weights"]) for kind in recipes}
    for steps in STEPS:
        for guided in (False, True):
            for kind, recipe in recipes.items():
                cfg = recipe.sampler.cfg if guided else 1.0
                shown = steps == STEPS[0]  # few files come back from some machines
                context.emit(**scorer.samples(kind, models[kind], recipe, steps, cfg, shown=shown))
