"""What a feature network says about images."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Outputs(NamedTuple):
    """Rows in the order of the images, all float32.

    features: (n, dim), what Fréchet distance, KID and precision/recall compare.
    logits: (n, classes), before the softmax of the Inception Score.
    spatial: (n, spatial_dim) of an earlier layer with its positions kept, for sFID; None where the
        network has none.
    """

    features: NDArray[np.float32]
    logits: NDArray[np.float32]
    spatial: NDArray[np.float32] | None = None
