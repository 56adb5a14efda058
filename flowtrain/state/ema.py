"""Moving averages of parameters in float32: exponential, and power functions of step.

A power-function average has a width that is a share of the training so far, sigma_rel, so that one
setting fits any length; and from snapshots of two of them the average of any other width can be
reconstructed after the run (Karras et al. 2024, arXiv:2312.02696, section 3; see
`flowtrain.state.posthoc`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from flowtrain.model import Params

if TYPE_CHECKING:
    from schemas.config import TrainConfig

MAIN = "ema"  # the average that `sample` and `eval` take unless they are told otherwise
# Number of the update, from 1, () int32 -> the share of the new parameters in the average, ()
# float32. Not the decay, which is 1 - share: near 1, where that of a long run is, float32 is too
# coarse.
Rate = Callable[[jax.Array], jax.Array]


def average_names(config: TrainConfig) -> tuple[str, ...]:
    """Names of a run's averages, the main one first: `ema`, `ema0.999`, `power0.05`."""
    return (MAIN, *(f"ema{decay}" for decay in config.ema_extra), *power_names(config))


def power_names(config: TrainConfig) -> tuple[str, ...]:
    """Names of the power-function averages among them."""
    return tuple(f"power{width}" for width in config.ema_power)


def averages(config: TrainConfig) -> dict[str, Rate]:
    """The rate of each average by name, as a function of the number of the update."""
    constant = [_constant(decay) for decay in (config.ema_decay, *config.ema_extra)]
    power = [_power(gamma_of_width(width)) for width in config.ema_power]
    return dict(zip(average_names(config), [*constant, *power], strict=True))


def _constant(decay: float) -> Rate:
    return lambda update: jnp.float32(1 - decay)


def _power(gamma: float) -> Rate:
    """1 - (1 - 1/k)^(gamma + 1). Update tau <= k then weighs (tau^(gamma + 1) - (tau - 1)^(gamma +
    1)) / k^(gamma + 1), the integral from tau - 1 to tau of the density (gamma + 1) tau^gamma /
    k^(gamma + 1).
    """
    return lambda update: -jnp.expm1((gamma + 1) * jnp.log1p(-1 / update.astype(jnp.float32)))


def gamma_of_width(width: float) -> float:
    """The exponent gamma >= 0 of the power function with relative width sigma_rel = `width`.

    sigma_rel^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)), the variance of tau / t under the
    density (gamma + 1) tau^gamma / t^(gamma + 1); solved as a cubic.

    Raises:
        ValueError: no such gamma (the width is over 1 / sqrt(12)).
    """
    inverse = width**-2
    roots = np.roots([1.0, 7.0, 16.0 - inverse, 12.0 - inverse])
    gamma = float(roots.real.max())
    if gamma < -1e-9:
        raise ValueError(f"relative width {width}: must be at most {12**-0.5:.4f}")
    return max(gamma, 0.0)


def update_ema(ema: Params, params: Params, rate: jax.Array | float) -> Params:
    """(1 - rate) * ema + rate * params, leaf by leaf; equal inputs stay as they are."""
    return jax.tree.map(lambda average, new: average + rate * (new - average), ema, params)
