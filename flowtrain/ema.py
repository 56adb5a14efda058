"""Exponential moving average of the parameters, kept in float32."""

import jax

from flowtrain.model import Params


def update_ema(ema: Params, params: Params, decay: float) -> Params:
    """decay * ema + (1 - decay) * params, leaf by leaf, written so that equal inputs are a fixed point."""
    return jax.tree.map(lambda average, new: average + (1.0 - decay) * (new - average), ema, params)
