"""The loop of `flowtrain train` without Grain: latents stay on the device, everything else is
flowtrain's.

Order, draws, step, averages, checkpoints and `run.json` are those of a run with the same recipe, so
the directory can be sampled from with the commands.
"""

import json
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax
import numpy as np
from jax.sharding import SingleDeviceSharding

from benchmarks.gpu_parts.cifar_data import Latents
from flowtrain.model import count_parameters, make_network
from flowtrain.records.order import Selection, batch_records
from flowtrain.state.checkpoint import Checkpoints, with_sharding
from flowtrain.state.train_state import TrainState
from flowtrain.state.workdir import differences
from flowtrain.step import Setup, init_state, make_train_step
from schemas.config import Recipe
from schemas.errors import UserError
from schemas.run import METRICS_NAME, RUN_NAME, DatasetRef, Run, read_run, write_run
from schemas.versions import installed_version

_PACKAGES = ("flowtrain", "jax", "flax", "optax", "orbax-checkpoint", "numpy")
# of a run, that must not change between calls
_OF_DATA = (
    "normalization",
    "classes",
    "latent_shape",
    "vae",
)
_TURN = 20  # steps of one run before it is the next one's turn
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
        versions={"python": platform.python_version()}
        | {name: installed_version(name) for name in _PACKAGES},
    )


class Training:
    """A run that goes on from its newest checkpoint. A context: leaving it waits for what is being
    saved.

    Raises:
        UserError: the directory is of another run.
    """

    def __init__(self, run: Run, latents: Latents, workdir: Path):
        _claim(workdir, run)
        recipe = run.recipe
        setup = Setup(
            recipe=recipe,
            network=make_network(recipe.model, run.latent_shape, len(run.classes)),
            latent_shape=run.latent_shape,
            null_class=len(run.classes),
            layout=latents.vae.layout,
            offset=run.normalization.offset,
            scale=run.normalization.scale,
        )
        self._run, self._recipe, self._workdir = run, recipe.train, workdir
        self._selection = Selection.choose(
            len(latents.labels), holdout=recipe.train.holdout, overfit=recipe.train.overfit
        )
        self._train_step, self._gather = make_train_step(setup), _gatherer(latents)
        self._key = jax.random.key(recipe.train.seed)
        self._checkpoints = Checkpoints(workdir, recipe.train)
        self._state = _begin(setup, self._key, self._checkpoints)
        self.step = self._logged = int(self._state.step)
        self._metrics: dict[str, jax.Array] = {}
        self._loss = float("nan")
        self._compiled, self._timed, self._seconds = False, 0, 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._checkpoints.__exit__(kind, error, trace)

    def advance(self, to: int) -> None:
        """Train up to step `to`, and wait for the device; nothing if that step is reached already.

        Raises:
            UserError: the loss is not finite.
        """
        if self.step < to and not self._compiled:
            self._advance()
            jax.block_until_ready(self._state)
            self._compiled = True  # with a step that does not count
        begin, first = time.perf_counter(), self.step
        while self.step < to:
            self._advance()
        jax.block_until_ready(self._state)
        self._seconds += time.perf_counter() - begin
        self._timed += self.step - first

    def _advance(self) -> None:
        recipe = self._recipe
        epoch, index = batch_records(recipe.seed, self.step, recipe.batch_size, self._selection)
        batch = self._gather(index.astype(np.int32), epoch.astype(np.int32))
        self._state, self._metrics = self._train_step(self._state, batch, self._key)
        self.step += 1
        if self.step % recipe.log_every == 0:
            self._log()

    def _log(self) -> None:
        self._loss = _log(self._workdir, self.step, self._metrics)
        self._logged = self.step

    def save(self) -> None:
        """A checkpoint of this step, if there is none."""
        if self.step > self._logged:
            self._log()
        if self.step == 0 or self.step in self._checkpoints.steps():
            return
        meta: dict[str, Any] = {
            "step": self.step,
            "dataset": self._run.dataset.digest,
            "rollbacks": [],
        }
        meta["recipe"] = self._run.recipe.model_dump(mode="json")
        self._checkpoints.save(self.step, self._state, {"next_index": self.step}, meta)

    def progress(self) -> Progress:
        """So far; the rate is without the first step of this call, which compiles."""
        images = self._timed * self._recipe.batch_size
        return Progress(self.step, self._loss, images / self._seconds if images else 0.0)


def advance_together(trainings: Sequence[Training], goal: int, is_over: Callable[[], bool]) -> None:
    """In turns of a few steps up to step `goal`, or until the time is over; then save all.

    All end at one step, unless the time is over before those that an ended call left behind have
    caught up.

    Raises:
        UserError: a loss is not finite.
    """
    saved = time.perf_counter()
    while not is_over():
        behind = min(training.step for training in trainings)
        if behind >= goal:
            break
        for training in trainings:
            training.advance(min(behind + _TURN, goal))
        if time.perf_counter() - saved > _SAVE_SECONDS:
            for training in trainings:
                training.save()
            saved = time.perf_counter()
    for training in trainings:
        training.save()


def _claim(workdir: Path, run: Run) -> None:
    """Write `run.json`, or check that what it says leads to the same parameters and decodes to the
    same images.
    """
    if (workdir / RUN_NAME).is_file():
        before = read_run(workdir)
        found = differences(before, run)
        found += [
            f"other {name}" for name in _OF_DATA if getattr(before, name) != getattr(run, name)
        ]
        if before.dataset.digest != run.dataset.digest:
            found.append("other latents")
        if found:
            raise UserError(
                f"{workdir}: is of another run: {'; '.join(found)}; give another --work"
            )
        run = run.model_copy(update={"versions": before.versions})  # those that began the run
    workdir.mkdir(parents=True, exist_ok=True)
    write_run(workdir, run)


def _begin(setup: Setup, key: jax.Array, checkpoints: Checkpoints) -> TrainState:
    init = partial(init_state, setup)
    step = checkpoints.latest()
    if step is None:
        return jax.jit(init)(key)
    place = SingleDeviceSharding(jax.devices()[0])
    state, _, _ = checkpoints.restore(step, with_sharding(jax.eval_shape(init, key), place))
    return state


def _gatherer(latents: Latents) -> Callable[[Any, Any], dict[str, jax.Array]]:
    """(index, epoch) -> a batch as `flowtrain.records.data.BatchReader` hands it over, from arrays
    on the device.
    """
    arrays = jax.device_put({**latents.tensors, "label": latents.labels})

    @jax.jit
    def take(
        arrays: dict[str, jax.Array], index: jax.Array, epoch: jax.Array
    ) -> dict[str, jax.Array]:
        batch = {
            name: values.at[index].get(mode="promise_in_bounds") for name, values in arrays.items()
        }
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
        raise UserError(
            f"step {step}: the loss is {row['loss']}; lower optimizer.learning_rate with --set"
        )
    return row["loss"]
