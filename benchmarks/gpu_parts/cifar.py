"""A flow and its diffusion twin on CIFAR-10, trained as long as the part may, and their FIDs.

A later call goes on from the checkpoints of an earlier one, and measures what was not measured at that step. Both are
trained to the same step. Every tenth image by name is held out; distances are to the images that were trained on, at
the resolution of the autoencoder's input, under the protocol `adm`. What is measured first matters most: the held-out
images and the decoded latents, then 100 and 20 sampling steps, without guidance and with the recipe's.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.gpu_parts.cifar_data import encode, held_out, read_pixels
from benchmarks.gpu_parts.cifar_score import Drawn, Scorer, load
from benchmarks.gpu_parts.cifar_train import Progress, make_run, train
from benchmarks.gpu_parts.part import Context
from flowtrain.recipes import find_recipe
from schemas.config import Recipe
from schemas.recipes import load_recipe

# Sampling steps, in the order in which they are measured, with the samples of each where --samples does not say.
COUNTS = {100: 50_000, 20: 50_000, 5: 10_000, 1: 10_000, 500: 10_000}
_RECONSTRUCTED = 10_000
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
    held = held_out(len(labels))
    kept, unseen = pixels[~held], pixels[held]
    del pixels
    latents = encode(context, resolution, kept, labels[~held], classes)
    context.emit(
        of="data",
        records=len(kept),
        held_out=len(unseen),
        latent=list(latents.shape),
        seconds=time.perf_counter() - begin,
    )
    begin = time.perf_counter()
    scorer = Scorer(context, latents, kept)
    context.emit(of="reference", metric=scorer.metric, seconds=time.perf_counter() - begin)
    del kept

    recipes = {kind: _recipe(context, option) for kind, option in _RECIPES.items()}
    reached: dict[str, Progress] = {}
    reserve = 2 * float(context.options["reserve"])
    for left, (kind, recipe) in zip((2, 1), recipes.items(), strict=True):
        until = _until(context, reserve, left, max((each.step for each in reached.values()), default=None))
        workdir = _workdir(context, kind)
        reached[kind] = train(make_run(recipe, latents), latents, workdir, until)
        _tell_training(context, kind, recipe, reached[kind])
    if reserve > 0:
        _score(context, scorer, recipes, unseen)
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


def _score(context: Context, scorer: Scorer, recipes: dict[str, Recipe], unseen: NDArray[np.uint8]) -> None:
    asked = context.options["samples"]
    context.emit(**scorer.images("held-out images", unseen))
    context.emit(**scorer.reconstructions(16 if context.tiny else _RECONSTRUCTED))
    models = {kind: load(_workdir(context, kind), context.options["weights"]) for kind in recipes}
    for steps, most in COUNTS.items():
        count = 16 if context.tiny else int(asked or most)
        shown = steps == next(iter(COUNTS))  # few files come back from some machines
        for guided in (False, True):
            for kind, recipe in recipes.items():
                cfg = recipe.sampler.cfg if guided else 1.0
                context.emit(**scorer.samples(kind, models[kind], recipe, Drawn(steps, cfg, count), shown=shown))
