"""One training step, compiled: latents, draws, gradient, update, averages, and the numbers to log.

Needs jax, flax, optax, numpy and jaxtyping only, so that it can be timed on a bare
accelerator machine.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from flowtrain.devices.sharding import replicated, state_shardings
from flowtrain.flow.objective import Draws, draw, losses_by_time, make_objective, record_losses
from flowtrain.model import Network, Params, Shape
from flowtrain.optim import make_optimizer, make_schedule
from flowtrain.records.counter import Purpose
from flowtrain.records.latents import model_latents
from flowtrain.shapes import Latents, PerRecord, RandomKey, Scalar, Times
from flowtrain.state.ema import averages, update_ema
from flowtrain.state.train_state import TrainState

if TYPE_CHECKING:
    from schemas.config import Recipe

Metrics = dict[str, jax.Array]
TrainStep = Callable[[TrainState, dict[str, jax.Array], jax.Array], tuple[TrainState, Metrics]]


@dataclass(frozen=True)
class Setup:
    """What a step is made of.

    Attributes:
        recipe: model, objective, optimizer and averages.
        network: of that model.
        latent_shape: (h, w, c) of a latent.
        null_class: the label that means "no label".
        layout: which tensors a batch holds (`schemas.layout.Layout`).
        offset: (c,) of the normalisation (raw - offset) * scale.
        scale: (c,) of the same.
    """

    recipe: Recipe
    network: Network
    latent_shape: Shape
    null_class: int
    layout: str
    offset: tuple[float, ...]
    scale: tuple[float, ...]


def init_state(setup: Setup, key: RandomKey) -> TrainState:
    """The state before the first step; averages start at the parameters. Jit it."""
    return _state_around(setup, setup.network.init(jax.random.fold_in(key, Purpose.INIT)))


def abstract_state(setup: Setup) -> TrainState:
    """That of `init_state` as ShapeDtypeStructs, without building the network again."""
    return jax.eval_shape(lambda params: _state_around(setup, params), setup.network.abstract)


@lru_cache(maxsize=4)
def make_init(setup: Setup, mesh: Mesh) -> Callable[[RandomKey], TrainState]:
    """`init_state`, jitted, each array of it where `state_shardings` puts it."""
    places = state_shardings(mesh, abstract_state(setup))
    return jax.jit(lambda key: init_state(setup, key), out_shardings=places)


def _state_around(setup: Setup, params: Params) -> TrainState:
    train = setup.recipe.train
    ema = {name: jax.tree.map(jnp.copy, params) for name in averages(train)}
    opt = make_optimizer(setup.recipe.optimizer, train.steps).init(params)
    return TrainState(jnp.int32(0), params, ema, opt, jnp.int32(0), jnp.int32(0))


@lru_cache(maxsize=4)
def make_train_step(setup: Setup, mesh: Mesh | None = None) -> TrainStep:
    """`(state, batch, key) -> (state, metrics)`, jitted, with the state's buffers donated.

    The batch is that of `BatchReader`. An update whose loss or gradient is not finite is not made:
    parameters, averages and optimizer stay, the step is counted. Metrics are () float32 (`skipped`,
    `streak`: int32), but for `time_loss` and `time_count`, (10,) float32: sums of the records'
    losses, and how many they are, by tenths of t.

    On a `mesh` the state stays where `state_shardings` puts it, which XLA does not do of itself:
    another layout would be compiled again, and not be donated. Metrics are on all devices.

    Equal arguments give the same function: a process that goes on with a run, or trains it again,
    traces it once.
    """
    train = setup.recipe.train
    optimizer = make_optimizer(setup.recipe.optimizer, train.steps)
    schedule = make_schedule(setup.recipe.optimizer, train.steps)
    rates = averages(train)

    def step(
        state: TrainState, batch: dict[str, jax.Array], key: RandomKey
    ) -> tuple[TrainState, Metrics]:
        losses, gradient, time = _gradient(setup, state.params, batch, key)
        loss, gradient_norm = jnp.mean(losses), _global_norm(gradient)
        finite = jnp.isfinite(loss) & jnp.isfinite(gradient_norm)
        updates, opt = optimizer.update(gradient, state.opt, state.params)
        params = optax.apply_updates(state.params, updates)
        made = state.step - state.skipped  # updates so far
        ema = {
            name: update_ema(state.ema[name], params, rate(made + 1))
            for name, rate in rates.items()
        }
        skipped = state.skipped + jnp.where(finite, 0, 1)
        streak = jnp.where(finite, 0, state.streak + 1)
        params, ema, opt = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old),
            (params, ema, opt),
            (state.params, state.ema, state.opt),
        )
        time_loss, time_count = losses_by_time(losses, time)
        metrics = {
            "loss": loss,
            "grad_norm": gradient_norm,
            "update_norm": jnp.where(finite, _global_norm(updates), 0.0),
            "param_norm": _global_norm(params),
            "learning_rate": jnp.asarray(schedule(made), jnp.float32),
            "finite": finite.astype(jnp.float32),
            "skipped": skipped,
            "streak": streak,
            "time_loss": time_loss,
            "time_count": time_count,
        }
        return TrainState(state.step + 1, params, ema, opt, skipped, streak), metrics

    if mesh is None:
        return jax.jit(step, donate_argnums=0)
    places = state_shardings(mesh, abstract_state(setup))
    return jax.jit(step, donate_argnums=0, out_shardings=(places, replicated(mesh)))


def _gradient(
    setup: Setup, params: Params, batch: dict[str, jax.Array], key: RandomKey
) -> tuple[PerRecord, Params, Times]:
    """Losses (n,), their mean's gradient, t (n,); the batch in `accumulate` parts in turn."""
    recipe = setup.recipe
    path = make_objective(recipe.objective).path
    data = model_latents(key, batch, setup.layout, setup.offset, setup.scale)
    draws = draw(key, batch, setup.latent_shape, recipe.objective, setup.null_class)

    def mean_loss(params: Params, data: Latents, draws: Draws) -> tuple[Scalar, PerRecord]:
        losses = record_losses(
            setup.network.predict, params, data, draws, path, recipe.model.output
        )
        return jnp.mean(losses), losses

    gradient_of = jax.grad(mean_loss, has_aux=True)
    parts = recipe.train.accumulate
    if parts == 1:
        gradient, losses = gradient_of(params, data, draws)
        return losses, gradient, draws.time

    def add(total: Params, part: tuple[Latents, Draws]) -> tuple[Params, PerRecord]:
        gradient, losses = gradient_of(params, *part)
        return jax.tree.map(lambda a, b: a + b / parts, total, gradient), losses

    zero = jax.tree.map(jnp.zeros_like, params)
    cut = jax.tree.map(lambda x: _cut(x, parts), (data, draws))
    gradient, losses = jax.lax.scan(add, zero, cut)
    return jnp.swapaxes(losses, 0, 1).reshape(-1), gradient, draws.time


def _cut(x: jax.Array, parts: int) -> jax.Array:
    """(n, ...) -> (parts, n / parts, ...), every parts-th row together, on its device."""
    return jnp.swapaxes(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 0, 1)


@lru_cache(maxsize=4)
def make_validation_step(setup: Setup, mesh: Mesh | None = None) -> Callable[..., Metrics]:
    """`(params, batch, weight, key) -> {"loss", "time_loss", "time_count"}`, jitted sums.

    `weight` (n,) float32 is 1 for a record and 0 for padding; `loss` is () and the others (10,) by
    tenths of t. Nothing is dropped, and the draws of a record are the same in every call. On a
    `mesh` the sums are on all devices.
    """
    objective = setup.recipe.objective.model_copy(update={"label_drop": 0.0})
    path = make_objective(objective).path

    def step(
        params: Params, batch: dict[str, jax.Array], weight: PerRecord, key: RandomKey
    ) -> Metrics:
        key = jax.random.fold_in(key, Purpose.VALIDATION)
        data = model_latents(key, batch, setup.layout, setup.offset, setup.scale)
        draws = draw(key, batch, setup.latent_shape, objective, setup.null_class)
        losses = record_losses(
            setup.network.predict, params, data, draws, path, setup.recipe.model.output
        )
        time_loss, time_count = losses_by_time(losses * weight, draws.time, weight)
        return {"loss": jnp.sum(losses * weight), "time_loss": time_loss, "time_count": time_count}

    return jax.jit(step) if mesh is None else jax.jit(step, out_shardings=replicated(mesh))


def _global_norm(tree: Any) -> Scalar:
    return jnp.sqrt(sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(tree)))
