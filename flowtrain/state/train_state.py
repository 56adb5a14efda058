"""Everything that a training run carries from one step to the next."""

from dataclasses import dataclass
from typing import Any

import jax

from flowtrain.model import Params


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """One pytree. The numbers are () int32.

    Attributes:
        step: batches that went through, those of skipped updates included.
        params: of the network.
        ema: moving averages of the parameters, by name (`flowtrain.state.ema.averages`).
        opt: state of the optax transformation.
        skipped: updates that were not made, since the loss or the gradient was not finite.
        streak: how many of them were the last ones, without a good step after them.
    """

    step: jax.Array
    params: Params
    ema: dict[str, Params]
    opt: Any
    skipped: jax.Array
    streak: jax.Array
