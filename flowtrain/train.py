"""The training loop: a plan, one jitted step, and a loop that can be killed at any moment and repeated.

Every number of a step follows from (recipe, dataset, step), so a run that was stopped and resumed ends with the same
bits as one that was not, on the same kind and number of devices.
"""

import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grain
import jax
import jax.numpy as jnp
import optax

from flowtrain.checkpoint import Checkpoints, with_sharding
from flowtrain.counter import Purpose
from flowtrain.data import Batch, BatchReader, LatentReader, make_loader, seek
from flowtrain.ema import update_ema
from flowtrain.latents import model_latents
from flowtrain.metrics import MetricsWriter, Progress
from flowtrain.model import Network, count_parameters, forward_macs, make_network
from flowtrain.objective import draw, flow_loss
from flowtrain.optim import make_optimizer, make_schedule
from flowtrain.sharding import Devices, batch_sharding, data_mesh, replicated
from flowtrain.state import TrainState
from flowtrain.workdir import claimed
from schemas.config import Recipe
from schemas.errors import UserError
from schemas.manifest import Manifest, Normalization
from schemas.run import DatasetRef, Run
from schemas.versions import installed_version

TrainStep = Callable[[TrainState, dict[str, jax.Array], jax.Array], tuple[TrainState, dict[str, jax.Array]]]
_PACKAGES = ("flowtrain", "jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


@dataclass(frozen=True)
class Plan:
    """A run that has been checked and not begun."""

    run: Run
    reader: LatentReader
    network: Network
    from_stored: Normalization  # what a batch goes through; run.normalization is the same from the VAE's own scale

    @property
    def recipe(self) -> Recipe:
        return self.run.recipe

    def summary(self) -> dict[str, Any]:
        """What `--dry-run` prints. FLOPs are twice the multiply-accumulates; a training step costs three forwards."""
        recipe, parameters = self.recipe, self.run.parameters
        return {
            "dataset": self.run.dataset.path,
            "records": self.run.dataset.records,
            "classes": len(self.run.classes),
            "latent": "x".join(map(str, self.run.latent_shape)),
            "steps": recipe.train.steps,
            "batch_size": recipe.train.batch_size,
            "epochs": round(recipe.train.steps * recipe.train.batch_size / self.run.dataset.records, 2),
            "parameters": parameters,
            "forward_gflop_per_image": round(2e-9 * forward_macs(recipe.model, self.run.latent_shape), 4),
            "checkpoint_bytes": 4 * 4 * parameters,  # parameters, EMA and Adam's two moments, float32
        }


def make_plan(data: Path, recipe: Recipe) -> Plan:
    """Open the dataset and check that the recipe fits it.

    Raises:
        UserError: the dataset is not whole, or its latents or its size do not fit the model or the batch.
    """
    reader = LatentReader(data)
    manifest = reader.manifest
    _check_shapes(manifest, recipe)
    if recipe.train.batch_size > len(reader):
        raise UserError(
            f"{data}: train.batch_size {recipe.train.batch_size} is larger than the dataset ({len(reader)} records); "
            f"lower it with --set train.batch_size={len(reader)}"
        )
    network = make_network(recipe.model, manifest.shape, len(manifest.classes))
    from_stored = _FROM_STORED[recipe.train.normalization](manifest)
    dataset = DatasetRef(
        path=str(data.resolve()),
        digest=manifest.digest(),
        split=manifest.split,
        records=len(reader),
        flips=manifest.flips,
        source=manifest.source.descriptor,
        resolution=manifest.resolution,
    )
    run = Run(
        recipe=recipe,
        dataset=dataset,
        latent_shape=manifest.shape,
        classes=manifest.classes,
        normalization=_from_raw(manifest, from_stored),
        vae=manifest.vae,
        parameters=count_parameters(network.abstract),
        versions={"python": platform.python_version()} | {name: installed_version(name) for name in _PACKAGES},
    )
    return Plan(run, reader, network, from_stored)


def _vae_scale(manifest: Manifest) -> Normalization:
    """Samples of a model are stored in a model's scale already."""
    return (
        manifest.model_normalization() if manifest.normalization is None else Normalization.identity(manifest.shape[2])
    )


# From what is stored to what the model sees, by `train.normalization`.
_FROM_STORED: dict[str, Callable[[Manifest], Normalization]] = {
    "vae": _vae_scale,
    "channel": Manifest.channel_normalization,
}


def _from_raw(manifest: Manifest, from_stored: Normalization) -> Normalization:
    """From the VAE's scale to what the model sees: decoding inverts it."""
    return from_stored if manifest.normalization is None else manifest.normalization.then(from_stored)


def _check_shapes(manifest: Manifest, recipe: Recipe) -> None:
    height, width, _ = manifest.shape
    patch = recipe.model.patch
    if height % patch or width % patch:
        factor = manifest.vae.factor if manifest.vae else 1
        raise UserError(
            f"resolution {manifest.resolution} is not divisible by VAE factor {factor} x patch {patch}: the latents "
            f"are {height}x{width}; choose model.patch to divide them, or encode at a multiple of {factor * patch}"
        )


def make_train_step(plan: Plan) -> TrainStep:
    """`(state, batch, key) -> (state, metrics)`, jitted, with the state's buffers donated.

    The batch is that of `BatchReader`; metrics are float32 scalars.
    """
    recipe, run = plan.recipe, plan.run
    optimizer = make_optimizer(recipe.optimizer, recipe.train.steps)
    schedule = make_schedule(recipe.optimizer, recipe.train.steps)
    layout, scale = plan.reader.manifest.layout, plan.from_stored

    def step(state: TrainState, batch: dict[str, jax.Array], key: jax.Array) -> tuple[TrainState, dict[str, jax.Array]]:
        data = model_latents(key, batch, layout, scale.offset, scale.scale)
        draws = draw(key, batch, run.latent_shape, recipe.objective, null_class=len(run.classes))

        def loss_of(params: Any) -> jax.Array:
            return jnp.mean(flow_loss(plan.network.velocity, params, data, draws))

        loss, gradient = jax.value_and_grad(loss_of)(state.params)
        updates, opt = optimizer.update(gradient, state.opt, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = update_ema(state.ema, params, recipe.train.ema_decay)
        metrics = {
            "loss": loss,
            "grad_norm": _global_norm(gradient),
            "param_norm": _global_norm(params),
            "learning_rate": jnp.asarray(schedule(state.step), jnp.float32),
        }
        return TrainState(state.step + 1, params, ema, opt), metrics

    return jax.jit(step, donate_argnums=0)


def init_state(plan: Plan, key: jax.Array) -> TrainState:
    """The state before the first step; the EMA starts at the parameters. Jit it."""
    params = plan.network.init(jax.random.fold_in(key, Purpose.INIT))
    optimizer = make_optimizer(plan.recipe.optimizer, plan.recipe.train.steps)
    return TrainState(jnp.int32(0), params, jax.tree.map(jnp.copy, params), optimizer.init(params))


def _global_norm(tree: Any) -> jax.Array:
    return jnp.sqrt(sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(tree)))


@dataclass(frozen=True)
class Outcome:
    """How a call of `train` ended: at `step`, because it was asked to stop or because the run is complete."""

    step: int
    stopped: bool


def train(
    plan: Plan,
    workdir: Path,
    *,
    should_stop: Callable[[], bool] = lambda: False,
    devices: Devices | None = None,
) -> Outcome:
    """Train in `workdir`, from its newest checkpoint if there is one, to the recipe's last step.

    Args:
        plan: from `make_plan`.
        workdir: a new directory, or that of the same run.
        should_stop: asked after every step; when it says yes, the state is saved and the call returns.
        devices: to cut the batch over; default: all local ones.

    Raises:
        UserError: the directory is not this run's, the loss is no longer finite, or a record is damaged.
    """
    recipe = plan.recipe.train
    mesh = data_mesh(recipe.batch_size, devices)
    key = jax.device_put(jax.random.key(recipe.seed), replicated(mesh))
    batches = BatchReader(plan.reader, batch_size=recipe.batch_size, seed=recipe.seed, flip=recipe.flip)
    loader = make_loader(batches, recipe.steps)
    with claimed(workdir, plan.run), Checkpoints(workdir, keep=recipe.keep) as checkpoints:
        start, state = _begin(plan, checkpoints, loader, key, mesh)
        if start >= recipe.steps:
            return Outcome(start, stopped=False)
        with MetricsWriter(workdir, start) as writer:
            progress = Progress(
                writer, start=start, steps=recipe.steps, batch_size=recipe.batch_size, log_every=recipe.log_every
            )
            try:
                return _loop(plan, state, start, loader, checkpoints, progress, key, mesh, should_stop)
            finally:
                progress.close()


def _begin(
    plan: Plan, checkpoints: Checkpoints, loader: grain.DatasetIterator[Batch], key: jax.Array, mesh: Any
) -> tuple[int, TrainState]:
    """The first step to make and the state before it; the loader is moved to it."""
    init = jax.jit(lambda k: init_state(plan, k), out_shardings=replicated(mesh))
    step = checkpoints.latest()
    if step is None:
        return 0, init(key)
    like = with_sharding(jax.eval_shape(init, key), replicated(mesh))
    state, data, meta = checkpoints.restore(step, like)
    if meta["step"] != step or meta["dataset"] != plan.run.dataset.digest or data.get("next_index") != step:
        raise UserError(f"checkpoint {step} belongs to another run or data position ({meta}, {data}); train elsewhere")
    if step < plan.recipe.train.steps:
        seek(loader, step)
    return step, state


def _loop(
    plan: Plan,
    state: TrainState,
    start: int,
    loader: grain.DatasetIterator[Batch],
    checkpoints: Checkpoints,
    progress: Progress,
    key: jax.Array,
    mesh: Any,
    should_stop: Callable[[], bool],
) -> Outcome:
    recipe = plan.recipe.train
    train_step, placement = make_train_step(plan), batch_sharding(mesh)
    meta = {"dataset": plan.run.dataset.digest, "recipe": plan.recipe.model_dump(mode="json")}
    stopped = False
    for step in range(start + 1, recipe.steps + 1):
        begin = time.perf_counter()
        batch = jax.device_put(next(loader), placement)
        waited = time.perf_counter() - begin
        state, metrics = train_step(state, batch, key)
        progress.push(step, metrics, waited)
        stopped = should_stop()
        if stopped or step % recipe.checkpoint_every == 0 or step == recipe.steps:
            progress.flush()  # a state whose loss is not finite is never saved
            checkpoints.save(step, state, loader.get_state(), meta | {"step": step})
        if stopped:
            return Outcome(step, stopped=step < recipe.steps)
    return Outcome(recipe.steps, stopped=False)
