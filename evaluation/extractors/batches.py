"""Images through a compiled network in batches of one size."""

from collections.abc import Callable

import jax
import numpy as np
from numpy.typing import NDArray

from evaluation.extractors.outputs import Outputs

Apply = Callable[[NDArray[np.uint8]], tuple[jax.Array, ...]]


def in_batches(apply: Apply, images: NDArray[np.uint8], batch: int) -> Outputs:
    """What a network says of any number of images.

    The last batch is padded with black images, so one compilation serves an image size and a result does not depend on
    how callers cut theirs. Outputs are read while the device works on the next batch.

    Args:
        apply: (batch, H, W, 3) uint8 -> the fields of `Outputs`, for a batch, float32; the last may be left out.
        images: (n, H, W, 3) uint8; n may be 0.
        batch: what `apply` is compiled for.

    Raises:
        ValueError: images of another type or shape.
    """
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3 or 0 in images.shape[1:]:
        raise ValueError(f"expected images (n, H, W, 3) of uint8, got {images.shape} of {images.dtype}")
    starts = range(0, max(len(images), 1), batch)  # none at all: one batch of padding tells the widths
    parts, pending = list[tuple[NDArray[np.float32], ...]](), None
    for start in starts:
        outputs = apply(_padded(images[start : start + batch], batch))
        if pending is not None:
            parts.append(tuple(map(np.asarray, pending)))
        pending = outputs
    assert pending is not None, "there is a batch"
    parts.append(tuple(map(np.asarray, pending)))
    return Outputs(*(np.concatenate(fields)[: len(images)] for fields in zip(*parts, strict=True)))


def _padded(images: NDArray[np.uint8], batch: int) -> NDArray[np.uint8]:
    missing = batch - len(images)
    return np.pad(images, ((0, missing), (0, 0), (0, 0), (0, 0))) if missing else images
