"""The optimizer of a recipe, in optax."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import optax

if TYPE_CHECKING:
    from schemas.config import OptimizerConfig


def _promoting(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function under JAX's standard promotion: optax mixes floats with its int32 count, which
    strict promotion refuses; everything else here is written for strict promotion.
    """

    @functools.wraps(function)
    def promoting(*args: Any, **kwargs: Any) -> Any:
        with jax.numpy_dtype_promotion("standard"):
            return function(*args, **kwargs)

    return promoting


def _rsqrt(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """peak / sqrt(max(step / rsqrt_steps, 1)), as EDM2 (Karras et al., arXiv:2312.02696)."""
    begin = config.warmup_steps  # rsqrt_steps count from the first step
    return lambda step: (
        config.learning_rate / jnp.sqrt(jnp.maximum((step + begin) / config.rsqrt_steps, 1.0))
    )


# By name: (config, steps after the warm-up) -> learning rate by step after the warm-up.
SCHEDULES: dict[str, Callable[[OptimizerConfig, int], optax.Schedule]] = {
    "constant": lambda config, steps: optax.constant_schedule(config.learning_rate),
    "cosine": lambda config, steps: optax.cosine_decay_schedule(
        config.learning_rate, max(steps, 1)
    ),
    "linear": lambda config, steps: optax.linear_schedule(config.learning_rate, 0.0, max(steps, 1)),
    "rsqrt": _rsqrt,
}


def make_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Learning rate by updates made: linear over `warmup_steps`, then the schedule."""
    after = SCHEDULES[config.schedule](config, steps - config.warmup_steps)
    if config.warmup_steps == 0:
        return _promoting(after)
    # Update k is made with (k + 1) / warmup_steps of the peak, so that the first one already moves.
    peak, length = config.learning_rate, config.warmup_steps
    warmup = optax.linear_schedule(peak / length, peak, max(length - 1, 1))
    return _promoting(optax.join_schedules([warmup, after], [config.warmup_steps]))


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Adam, with the recipe's decoupled weight decay (AdamW) and clipping by global norm."""
    clip = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm is not None else []
    decay = [optax.add_decayed_weights(config.weight_decay)] if config.weight_decay else []
    optimizer = optax.chain(
        *clip,
        optax.scale_by_adam(b1=config.beta1, b2=config.beta2, eps=config.eps),
        *decay,
        optax.scale_by_learning_rate(make_schedule(config, steps)),
    )
    return optimizer._replace(update=_promoting(optimizer.update))
