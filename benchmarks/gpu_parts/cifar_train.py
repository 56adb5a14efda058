"""The loop of `flowtrain train` without Grain: latents stay on the device, everything else is flowtrain's.

Order, draws, step, averages, checkpoints and `run.json` are those of a run with the same recipe, so the directory can be
sampled from and evaluated with the commands.
"""

import json
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import SingleDeviceSharding

from benchmarks.gpu_parts.cifar_data import Latents
from flowtrain.checkpoint import Checkpoints, with_sharding
from flowtrain.ema import average_names
from flowtrain.faults import memory_faults
from flowtrain.model import count_parameters, make_network
from flowtrain.order import Selection, batch_records
from flowtrain.state import TrainState
from flowtrain.step import Setup, init_state, make_train_step
from schemas.config import Recipe
from schemas.errors import UserError
from schemas.run import METRICS_NAME, RUN_NAME, DatasetRef, Run, read_run, write_run
from schemas.versions import installed_version

_PACKAGES = ("flowtrain", "jax", "flax", "optax", "orbax-checkpoint", "numpy")
_LEARNED = ("model", "objective", "optimizer")  # tables that must not change between calls
_SAVE_SECONDS = 60.0


@dataclass(frozen=True)
class Progress:
    """Where a call ended: the step, the last mean loss, images a second of this call."""

    step: int
    loss: float
    rate: float


def make_run(recipe: Recipe, latents: Latents) -> Run:
    """What `run.json` says."""
    network = make_network(recipe.model, latents.shape, len(latents.classes))
    dataset = DatasetRef(
        path="in memory",
        digest=latents.digest,
        split="train",
        records=len(latents.labels),
        flips=False,
        source="cifar10",
        resolution=latents.resolution,
    )
    return Run(
        recipe=recipe,
        dataset=dataset,
        latent_shape=latents.shape,
        classes=latents.classes,
        normalization=latents.normalization(recipe.train.normalization),
        vae=latents.vae,
        parameters=count_parameters(network.abstract),
        versions={"python": platform.python_version()} | {name: installed_version(name) for name in _PACKAGES},
    )


def train(run: Run, latents: Latents, workdir: Path, until: Callable[[int], bool]) -> Progress:
    """Go on from the newest checkpoint until `until(step)` says so, or to the recipe's last step; then save.

    Raises:
        UserError: the directory is of another run, or the loss is not finite.
    """
    recipe = run.recipe
    _claim(workdir, run)
    setup = Setup(
        recipe=recipe,
        network=make_network(recipe.model, run.latent_shape, len(run.classes)),
        latent_shape=run.latent_shape,
        null_class=len(run.classes),
        layout=latents.vae.layout,
        offset=run.normalization.offset,
        scale=run.normalization.scale,
    )
    with memory_faults(), Checkpoints(workdir, recipe.train) as checkpoints:
        return _loop(setup, run, latents, workdir, checkpoints, until)


def _claim(workdir: Path, run: Run) -> None:
    if not (workdir / RUN_NAME).is_file():
        workdir.mkdir(parents=True, exist_ok=True)
        write_run(workdir, run)
        return
    before = read_run(workdir)
    same = all(getattr(before.recipe, table) == getattr(run.recipe, table) for table in _LEARNED)
    ours, theirs = run.recipe.train, before.recipe.train
    same &= (ours.batch_size, ours.seed, average_names(ours)) == (theirs.batch_size, theirs.seed, average_names(theirs))
    if not same or before.dataset.digest != run.dataset.digest:
        raise UserError(f"{workdir}: a run of another recipe or of other latents; give another --work")


def _loop(
    setup: Setup,
    run: Run,
    latents: Latents,
    workdir: Path,
    checkpoints: Checkpoints,
    until: Callable[[int], bool],
) -> Progress:
    recipe = run.recipe.train
    key = jax.random.key(recipe.seed)
    state = _begin(setup, key, checkpoints)
    train_step, gather = make_train_step(setup), _gatherer(latents)
    selection = Selection.choose(len(latents.labels), holdout=recipe.holdout, overfit=recipe.overfit)

    def save(step: int) -> None:
        meta = {"step": step, "dataset": run.dataset.digest, "rollbacks": []}
        meta["recipe"] = run.recipe.model_dump(mode="json")
        checkpoints.save(step, state, {"next_index": step}, meta)

    step = first = logged = int(state.step)
    begin = saved = time.perf_counter()
    loss = float("nan")
    while step < recipe.steps and not until(step):
        epoch, index = batch_records(recipe.seed, step, recipe.batch_size, selection)
        state, metrics = train_step(state, gather(index.astype(np.int32), epoch.astype(np.int32)), key)
        step += 1
        if step == first + 1:
            jax.block_until_ready(state)
            begin = time.perf_counter()  # what came before was compilation
        if step % recipe.log_every == 0:
            loss, logged = _log(workdir, step, metrics), step
        if time.perf_counter() - saved > _SAVE_SECONDS:
            save(step)
            saved = time.perf_counter()
    jax.block_until_ready(state)
    seconds = time.perf_counter() - begin
    if step > logged:
        loss = _log(workdir, step, metrics)
    if step > first and step not in checkpoints.steps():
        save(step)
    made = max(step - first - 1, 0) * recipe.batch_size
    return Progress(step, loss, made / seconds if made else 0.0)


def _begin(setup: Setup, key: jax.Array, checkpoints: Checkpoints) -> TrainState:
    init = partial(init_state, setup)
    step = checkpoints.latest()
    if step is None:
        return jax.jit(init)(key)
    place = SingleDeviceSharding(jax.devices()[0])
    state, _, _ = checkpoints.restore(step, with_sharding(jax.eval_shape(init, key), place))
    return state


def _gatherer(latents: Latents) -> Callable[[Any, Any], dict[str, jax.Array]]:
    """(index, epoch) -> a batch as `flowtrain.data.BatchReader` hands it over, from arrays on the device."""
    arrays = jax.device_put({**latents.tensors, "label": latents.labels})

    @jax.jit
    def take(arrays: dict[str, jax.Array], index: jax.Array, epoch: jax.Array) -> dict[str, jax.Array]:
        batch = {name: values.at[index].get(mode="promise_in_bounds") for name, values in arrays.items()}
        return batch | {"index": index, "epoch": epoch}

    return partial(take, arrays)


def _log(workdir: Path, step: int, metrics: dict[str, jax.Array]) -> float:
    """Waits for the device, and appends to metrics.jsonl.

    Raises:
        UserError: the loss is not finite.
    """
    names = ("loss", "grad_norm", "learning_rate", "skipped")
    row = {"step": step, **{name: float(metrics[name]) for name in names}}
    with (workdir / METRICS_NAME).open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(row) + "\n")
    if not np.isfinite(row["loss"]):
        raise UserError(f"step {step}: the loss is {row['loss']}; lower optimizer.learning_rate with --set")
    return row["loss"]
