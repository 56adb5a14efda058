"""Everything that a training run carries from one step to the next."""

from dataclasses import dataclass
from typing import Any

import jax

from flowtrain.model import Params


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """One pytree: `step` is the number of updates made, () int32; `opt` is the state of the optax transformation."""

    step: jax.Array
    params: Params
    ema: Params
    opt: Any
