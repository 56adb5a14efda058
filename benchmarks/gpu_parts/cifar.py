"""A flow and its diffusion twin on CIFAR-10, trained as long as the part may, and their FIDs.

A later call goes on from the checkpoints of an earlier one, and measures what was not measured at
that step. Both take turns of a few steps, and are measured at the same step or not at all. Every
tenth image by name is held out; distances are to the images that were trained on, at the resolution
of the autoencoder's input, under the protocol `adm`. What is measured first matters most: the
held-out images and the decoded latents, then 100 and 20 sampling steps, without guidance and with
the recipe's.
"""

import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.gpu_parts.cifar_data import Latents, encode, held_out, read_pixels
from benchmarks.gpu_parts.cifar_score import Drawn, Scorer
from benchmarks.gpu_parts.cifar_train import Progress, Training, advance_together, make_run
from benchmarks.gpu_parts.part import Context
from flowtrain.recipes import find_recipe
from flowtrain.state.checkpoint import PARAMS, load_for_sampling
from flowtrain.state.ema import average_names
from flowtrain.state.faults import memory_faults
from schemas.config import Recipe
from schemas.errors import UserError
from schemas.recipes import load_recipe
from schemas.run import Run

# Sampling steps, in the order in which they are measured, with the samples of each where --samples
# does not say.
COUNTS = {100: 50_000, 20: 50_000, 5: 10_000, 1: 10_000, 500: 10_000}
_RECONSTRUCTED = 10_000
_RECIPES = {"flow": "recipe", "diffusion": "diffusion_recipe"}  # by kind, the option that names it
# An average that forgets its beginning within a run of minutes, beside the recipe's, which does
# not.
_SHORT = ("train.ema_extra=[0.999]",)
# In miniature: the same recipes, with a network of one block.
_TINY = (
    *("model.depth=1", "model.width=32", "model.heads=2", "model.dtype=float32"),
    *("train.batch_size=8", "train.holdout=0", "train.log_every=2"),
)
_TINY_STEPS = 3  # in one call
_CLOSE_SECONDS = 15.0  # before the end, where nothing is measured: for a last turn and for saving


def run(context: Context) -> None:
    """Data, training, distances; each setting is a row as soon as it is measured."""
    recipes = _recipes(context)
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
    runs = {kind: make_run(recipe, latents) for kind, recipe in recipes.items()}
    begin = time.perf_counter()
    scorer = Scorer(context, latents, kept)
    context.emit(of="reference", metric=scorer.metric, seconds=time.perf_counter() - begin)
    del kept

    reserve = 2 * float(context.options["reserve"])
    reached = _train(context, runs, latents, reserve)
    for kind, progress in reached.items():
        _tell_training(context, kind, recipes[kind], progress)
        if progress.step < recipes[kind].train.steps:
            context.unfinished(f"{kind} is at step {progress.step} of {recipes[kind].train.steps}")
    steps = {progress.step for progress in reached.values()}
    if len(steps) > 1:
        told = ", ".join(f"{kind} at {progress.step}" for kind, progress in reached.items())
        context.unfinished(f"not measured, since the steps differ: {told}; the next call goes on")
    elif reserve > 0:
        _score(context, scorer, recipes, unseen, steps.pop())


def _recipes(context: Context) -> dict[str, Recipe]:
    """By kind.

    Raises:
        UserError: a recipe or an override is wrong, their lengths differ, or --weights are not
            kept.
    """
    overrides = [*_SHORT, *(_TINY if context.tiny else ()), *context.options["set"]]
    recipes = {
        kind: load_recipe(find_recipe(context.options[option]), overrides)
        for kind, option in _RECIPES.items()
    }
    lengths = {kind: recipe.train.steps for kind, recipe in recipes.items()}
    if len(set(lengths.values())) > 1:
        told = " and ".join(f"{steps} ({kind})" for kind, steps in lengths.items())
        raise UserError(f"train.steps are {told}; give both the same with --set train.steps=N")
    weights = context.options["weights"]
    for kind, recipe in recipes.items():
        known = (*average_names(recipe.train), PARAMS)
        if weights not in known:
            raise UserError(f"--weights {weights}: the {kind} keeps {', '.join(known)}")
    return recipes


def _train(
    context: Context, runs: dict[str, Run], latents: Latents, reserve: float
) -> dict[str, Progress]:
    """Both, until only the reserve of the time is left; the memory of the device is free again."""
    end = context.deadline - max(reserve, _CLOSE_SECONDS)
    with memory_faults(), ExitStack() as stack:
        trainings = {
            kind: stack.enter_context(Training(run, latents, _workdir(context, kind)))
            for kind, run in runs.items()
        }
        goal = min(run.recipe.train.steps for run in runs.values())
        if context.tiny:
            goal = min(goal, min(training.step for training in trainings.values()) + _TINY_STEPS)
        advance_together(list(trainings.values()), goal, lambda: time.time() > end)
        return {kind: training.progress() for kind, training in trainings.items()}


def _workdir(context: Context, kind: str) -> Path:
    return context.work / "cifar" / kind


def _tell_training(context: Context, kind: str, recipe: Recipe, progress: Progress) -> None:
    images = progress.step * recipe.train.batch_size
    row: dict[str, Any] = {
        "of": f"training, {kind}",
        "step": progress.step,
        "images": images,
        "loss": progress.loss,
    }
    context.emit(**row, images_per_second=progress.rate)


def _score(
    context: Context,
    scorer: Scorer,
    recipes: dict[str, Recipe],
    unseen: NDArray[np.uint8],
    step: int,
) -> None:
    asked = context.options["samples"]
    context.emit(**scorer.images("held-out images", unseen))
    context.emit(**scorer.reconstructions(16 if context.tiny else _RECONSTRUCTED))
    models = {
        kind: load_for_sampling(_workdir(context, kind), step, context.options["weights"])
        for kind in recipes
    }
    for steps, most in COUNTS.items():
        count = 16 if context.tiny else int(asked or most)
        shown = steps == next(iter(COUNTS))  # few files come back from some machines
        for guided in (False, True):
            for kind, recipe in recipes.items():
                cfg = recipe.sampler.cfg if guided else 1.0
                context.emit(
                    **scorer.samples(
                        kind, models[kind], recipe, Drawn(steps, cfg, count), shown=shown
                    )
                )
