"""What a train step returns, made up."""

from typing import Any

import numpy as np


def values(
    loss: float, *, skipped: int = 0, made: bool = True, tenth: int = 0, records: int = 4
) -> dict[str, Any]:
    """What a train step returns when all `records` of the batch have their t in one tenth."""
    count, time_loss = np.zeros(10, np.float32), np.zeros(10, np.float32)
    count[tenth], time_loss[tenth] = records, records * loss
    return {
        "loss": np.float32(loss),
        "grad_norm": np.float32(2 * loss),
        "update_norm": np.float32(loss / 4),
        "param_norm": np.float32(10 + loss if made else 10),
        "learning_rate": np.float32(0.5 if made else 0.25),
        "finite": np.float32(made),
        "skipped": np.int32(skipped),
        "streak": np.int32(not made),
        "time_loss": time_loss,
        "time_count": count,
    }
