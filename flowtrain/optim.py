"""The optimizer of a recipe, in optax."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import optax

if TYPE_CHECKING:
    from schemas.config import OptimizerConfig

SCHEDULES: dict[str, Callable[[float, int], optax.Schedule]] = {
    "constant": lambda peak, steps: optax.constant_schedule(peak),
    "cosine": lambda peak, steps: optax.cosine_decay_schedule(peak, max(steps, 1)),
}


def make_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Learning rate by step: linear over `warmup_steps`, then the recipe's schedule to the last step."""
    after = SCHEDULES[config.schedule](config.learning_rate, steps - config.warmup_steps)
    if config.warmup_steps == 0:
        return after
    # Update k is made with (k + 1) / warmup_steps of the peak, so that the first one already moves.
    peak, length = config.learning_rate, config.warmup_steps
    warmup = optax.linear_schedule(peak / length, peak, max(length - 1, 1))
    return optax.join_schedules([warmup, after], [config.warmup_steps])


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Adam; with decoupled weight decay (AdamW) and clipping by global norm when the recipe sets them."""
    clip = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm is not None else []
    decay = [optax.add_decayed_weights(config.weight_decay)] if config.weight_decay else []
    return optax.chain(
        *clip,
        optax.scale_by_adam(b1=config.beta1, b2=config.beta2, eps=config.eps),
        *decay,
        optax.scale_by_learning_rate(make_schedule(config, steps)),
    )
