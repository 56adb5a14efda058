"""The one place where uint8 pixels and the model range [-1, 1] meet.

Every image in the system is channels last, RGB. The VAE and pixel-space models see float32 in [-1,
1]; disks, PNGs and feature networks see uint8 in [0, 255]. Whoever needs the other form calls this
module, once.
"""

import numpy as np
from numpy.typing import NDArray


def from_uint8(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """uint8 in [0, 255] -> float32 in [-1, 1], any shape: x / 127.5 - 1.

    Raises:
        TypeError: the input is not uint8 (a float image here is nearly always one that was scaled
            before).
    """
    if images.dtype != np.uint8:
        raise TypeError(f"expected uint8 pixels, got {images.dtype}")
    return images.astype(np.float32) / np.float32(127.5) - np.float32(1.0)


def to_uint8(images: NDArray[np.floating]) -> NDArray[np.uint8]:
    """float in [-1, 1] -> uint8 in [0, 255], any shape: clip, then round half to even.

    Inverse of `from_uint8` on every uint8 value. Values outside [-1, 1] are clipped, as decoders
    overshoot.

    Raises:
        TypeError: the input is not floating point.
        ValueError: the input holds NaN, which no clip mends.
    """
    if not np.issubdtype(images.dtype, np.floating):
        raise TypeError(f"expected floating-point images, got {images.dtype}")
    scaled = np.rint((images.astype(np.float32) + np.float32(1.0)) * np.float32(127.5))
    if np.isnan(scaled).any():
        raise ValueError("images hold NaN")
    return np.clip(scaled, 0, 255).astype(np.uint8)
