"""Flow matching: from a batch of clean latents to a loss. Needs jax, flax, optax and numpy only."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from flowtrain.counter import Purpose, record_keys
from flowtrain.path import LinearPath, squared_error

if TYPE_CHECKING:
    from flowtrain.model import Params, Velocity
    from schemas.config import ObjectiveConfig

PATH = LinearPath()


def _logit_normal(key: jax.Array, config: ObjectiveConfig) -> jax.Array:
    """Sigmoid of N(logit_mean, logit_std^2): more weight in mid-path (Esser et al. 2024, arXiv:2403.03206)."""
    return jax.nn.sigmoid(config.logit_mean + config.logit_std * jax.random.normal(key))


def _uniform(key: jax.Array, config: ObjectiveConfig) -> jax.Array:
    del config
    return jax.random.uniform(key)


# How the t of one record is drawn from its key.
TIMES: dict[str, Callable[[jax.Array, ObjectiveConfig], jax.Array]] = {
    "logit_normal": _logit_normal,
    "uniform": _uniform,
}


class Draws(NamedTuple):
    """The random numbers of a batch: what a record is mixed with, when, and under which label."""

    noise: jax.Array  # (n, h, w, c) float32, standard normal
    time: jax.Array  # (n,) float32 in [0, 1]
    label: jax.Array  # (n,) int32; `null_class` where the label was dropped


def draw(
    key: jax.Array,
    batch: dict[str, Any],
    latent_shape: tuple[int, int, int],
    config: ObjectiveConfig,
    null_class: int,
) -> Draws:
    """Draw noise, t and label drop for a batch with `epoch`, `index` and `label` (n,) int32."""
    epoch, index = batch["epoch"], batch["index"]
    noise = jax.vmap(lambda k: jax.random.normal(k, latent_shape))(record_keys(key, Purpose.NOISE, epoch, index))
    time = jax.vmap(lambda k: TIMES[config.time](k, config))(record_keys(key, Purpose.TIME, epoch, index))
    uniform = jax.vmap(jax.random.uniform)(record_keys(key, Purpose.LABEL_DROP, epoch, index))
    label = jnp.where(uniform < config.label_drop, null_class, batch["label"])
    return Draws(noise, time, label)


def flow_loss(velocity: Velocity, params: Params, data: jax.Array, draws: Draws) -> jax.Array:
    """Squared error of the predicted velocity for each record: data (n, h, w, c) in model scale -> (n,) float32."""
    x = PATH.interpolate(draws.noise, data, draws.time)
    return squared_error(velocity(params, x, draws.time, draws.label), PATH.velocity(draws.noise, data))
