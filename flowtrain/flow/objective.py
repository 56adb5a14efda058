"""What is learned: from a batch of clean latents to a loss.

Needs jax, flax, optax, numpy and jaxtyping only.

An objective is a path and a distribution of t on it. What the network predicts of a point on the
path is the model's own convention (`ModelConfig.output`), so each objective goes with each
prediction that is not singular on it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32

from flowtrain.flow.path import Ends, LinearPath, Path, VariancePreservingPath, squared_error
from flowtrain.records.counter import Purpose, record_keys
from flowtrain.shapes import Labels, Latents, PerRecord, RandomKey, Scalar, Times

if TYPE_CHECKING:
    from flowtrain.model import Params, Predict
    from schemas.config import ObjectiveConfig

TIME_BINS = 10  # of the loss by t


@dataclass(frozen=True)
class Objective:
    """A path, and how the t of one record is drawn from its key: () float32 in [0, 1]."""

    path: Path
    draw_time: Callable[[RandomKey], Scalar]


def _logit_normal(key: RandomKey, mean: float, std: float) -> Scalar:
    """Sigmoid of N(mean, std^2): more weight in mid-path (Esser et al. 2024, arXiv:2403.03206)."""
    return jax.nn.sigmoid(mean + std * jax.random.normal(key))


def _level(key: RandomKey, levels: int) -> Scalar:
    """t of a noise level k = 1 ... levels, uniformly: DDPM's training distribution."""
    return 1 - jax.random.randint(key, (), 1, levels + 1).astype(jnp.float32) / levels


def _mixture(key: RandomKey, mean: float, std: float, uniform_share: float) -> Scalar:
    """Uniform for `uniform_share` of the keys, logit-normal for the others."""
    choice, uniform, normal = jax.random.split(key, 3)
    return jnp.where(
        jax.random.uniform(choice) < uniform_share,
        jax.random.uniform(uniform),
        _logit_normal(normal, mean, std),
    )


def _logit_normal_times(config: ObjectiveConfig) -> Callable[[RandomKey], Scalar]:
    """With no uniform share, the key is used whole: runs of before there was one draw as they
    did.
    """
    if config.uniform_share == 0:
        return partial(_logit_normal, mean=config.logit_mean, std=config.logit_std)
    return partial(
        _mixture, mean=config.logit_mean, std=config.logit_std, uniform_share=config.uniform_share
    )


_TIMES: dict[str, Callable[[ObjectiveConfig], Callable[[RandomKey], Scalar]]] = {
    "logit_normal": _logit_normal_times,
    "uniform": lambda config: jax.random.uniform,
}


def _flow(config: ObjectiveConfig) -> Objective:
    return Objective(LinearPath(), _TIMES[config.time](config))


def _diffusion(config: ObjectiveConfig) -> Objective:
    path = VariancePreservingPath(config.beta_start, config.beta_end, config.diffusion_steps)
    return Objective(path, partial(_level, levels=config.diffusion_steps))


OBJECTIVES: dict[str, Callable[[ObjectiveConfig], Objective]] = {
    "flow": _flow,
    "diffusion": _diffusion,
}


def make_objective(config: ObjectiveConfig) -> Objective:
    """The objective of a recipe."""
    return OBJECTIVES[config.kind](config)


class Draws(NamedTuple):
    """The random numbers of a batch: what a record is mixed with, when, and under which label."""

    noise: Latents  # (n, h, w, c) float32, standard normal
    time: Times  # (n,) float32 in [0, 1]
    label: Labels  # (n,) int32; `null_class` where the label was dropped


def draw(
    key: RandomKey,
    batch: dict[str, Any],
    latent_shape: tuple[int, int, int],
    config: ObjectiveConfig,
    null_class: int,
) -> Draws:
    """Draw noise, t and label drop for a batch with `epoch`, `index` and `label` (n,) int32."""
    epoch, index = batch["epoch"], batch["index"]
    noise = jax.vmap(lambda k: jax.random.normal(k, latent_shape))(
        record_keys(key, Purpose.NOISE, epoch, index)
    )
    time = jax.vmap(make_objective(config).draw_time)(record_keys(key, Purpose.TIME, epoch, index))
    uniform = jax.vmap(jax.random.uniform)(record_keys(key, Purpose.LABEL_DROP, epoch, index))
    label = jnp.where(uniform < config.label_drop, null_class, batch["label"])
    return Draws(noise, time, label)


def record_losses(
    predict: Predict, params: Params, data: Latents, draws: Draws, path: Path, output: str
) -> PerRecord:
    """Squared error (n,) float32 of predictions for data (n, h, w, c) in model scale.

    Args:
        predict: the network, `(params, x, t, label) -> (n, h, w, c)`.
        params: its parameters.
        data: clean latents.
        draws: of the same records.
        path: from noise to data.
        output: what the network predicts, one of `flowtrain.flow.path.VIEWS`.
    """
    x = path.interpolate(draws.noise, data, draws.time)
    target = path.view(output, Ends(draws.noise, data), draws.time)
    return squared_error(predict(params, x, draws.time, draws.label), target)


def losses_by_time(
    losses: PerRecord, time: Times, weight: PerRecord | None = None
) -> tuple[Float32[Array, " bins"], Float32[Array, " bins"]]:
    """Sums and counts (TIME_BINS,) float32 of losses (n,) by tenths of their t (n,).

    With `weight` (n,) the counts are sums of weights; losses are taken as weighted already.
    """
    bins = jnp.clip(jnp.floor(time * TIME_BINS), 0, TIME_BINS - 1).astype(jnp.int32)
    member = bins[:, None] == jnp.arange(TIME_BINS)[None, :]

    def total(values: PerRecord) -> Float32[Array, " bins"]:
        # no matmul, which an accelerator would round
        return jnp.where(member, values[:, None], 0.0).sum(axis=0)

    return total(losses), total(jnp.ones_like(time) if weight is None else weight)
