"""Images through a compiled network in batches of one size."""

from collections.abc import Callable

import jax
import numpy as np
from numpy.typing import NDArray

from evaluation.extractors.outputs import Outputs

Apply = Callable[[NDArray[np.uint8]], tuple[jax.Array, jax.Array]]


def in_batches(apply: Apply, images: NDArray[np.uint8], batch: int) -> Outputs:
    """Features and logits of any number of images.

    The last batch is padded with black images, so one compilation serves an image size and a result does not depend on
    how callers cut theirs.

    Args:
        apply: (batch, H, W, 3) uint8 -> features (batch, dim) and logits (batch, classes), both float32.
        images: (n, H, W, 3) uint8; n may be 0.
        batch: what `apply` is compiled for.

    Raises:
        ValueError: images of another type or shape.
    """
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3 or 0 in images.shape[1:]:
        raise ValueError(f"expected images (n, H, W, 3) of uint8, got {images.shape} of {images.dtype}")
    starts = range(0, max(len(images), 1), batch)  # none at all: one batch of padding tells the widths
    outputs = [apply(_padded(images[start : start + batch], batch)) for start in starts]
    features, logits = (
        np.concatenate([np.asarray(p) for p in parts])[: len(images)] for parts in zip(*outputs, strict=True)
    )
    return Outputs(features, logits)


def _padded(images: NDArray[np.uint8], batch: int) -> NDArray[np.uint8]:
    missing = batch - len(images)
    return np.pad(images, ((0, missing), (0, 0), (0, 0), (0, 0))) if missing else images
