"""Images through a compiled network in batches of one size."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
from numpy.typing import NDArray

from evaluation.extractors.outputs import Outputs

Apply = Callable[[NDArray[np.uint8]], tuple[jax.Array, ...]]

# At once: on a CPU one batch leaves cores idle between its operations, on a GPU the host prepares
# the next one.
_AT_ONCE = 2


def in_batches(apply: Apply, images: NDArray[np.uint8], batch: int) -> Outputs:
    """What a network says of any number of images.

    The last batch is padded with black images, so one compilation serves an image size and a result
    does not depend on how callers cut theirs. Two batches are computed at once.

    Args:
        apply: (batch, H, W, 3) uint8 -> the fields of `Outputs`, for a batch, float32; the last may
            be left out. It is called from several threads.
        images: (n, H, W, 3) uint8; n may be 0.
        batch: what `apply` is compiled for.

    Raises:
        ValueError: images of another type or shape.
    """
    images = np.asarray(images)
    if (
        images.dtype != np.uint8
        or images.ndim != 4
        or images.shape[-1] != 3
        or 0 in images.shape[1:]
    ):
        raise ValueError(
            f"expected images (n, H, W, 3) of uint8, got {images.shape} of {images.dtype}"
        )

    def outputs(start: int) -> tuple[NDArray[np.float32], ...]:
        return tuple(map(np.asarray, apply(_padded(images[start : start + batch], batch))))

    # none at all: one batch of padding tells the widths
    starts = range(0, max(len(images), 1), batch)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        parts = list(pool.map(outputs, starts))
    return Outputs(*(np.concatenate(fields)[: len(images)] for fields in zip(*parts, strict=True)))


def _padded(images: NDArray[np.uint8], batch: int) -> NDArray[np.uint8]:
    missing = batch - len(images)
    return np.pad(images, ((0, missing), (0, 0), (0, 0), (0, 0))) if missing else images
