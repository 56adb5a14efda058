"""What a feature network says about images."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float32


class Outputs(NamedTuple):
    """Rows in the order of the images, all float32.

    features: (n, dim), what Fréchet distance, KID and precision/recall compare.
    logits: (n, classes), before the softmax of the Inception Score.
    spatial: (n, spatial_dim) of an earlier layer with its positions kept, for sFID; None where the
        network has none.
    """

    features: Float32[np.ndarray, "n d"]
    logits: Float32[np.ndarray, "n k"]
    spatial: Float32[np.ndarray, "n s"] | None = None
