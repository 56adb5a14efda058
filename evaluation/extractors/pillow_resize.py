"""Pillow's BICUBIC resize of 8-bit images, bit for bit, in compiled integer arithmetic.

Pillow (`src/libImaging/Resample.c`) resizes along the width, rounds to 8 bits, then along the
height. A pixel is a sum over taps of the cubic kernel of Keys (1981) with a = -0.5, stretched by
the scale when it shrinks (that is its antialiasing), cut off at the border and normalised. For
8-bit images the weights are rounded to 22 fractional bits and the sums are those of integers; hence
equality on every device.
"""

from functools import cache, partial

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float64, Int32, UInt8

_BITS = 22
_SUPPORT = 2.0


def pillow_bicubic(images: UInt8[Array, "n H W c"], size: int) -> UInt8[Array, "n {size} {size} c"]:
    """Pillow's `resize((size, size), BICUBIC)`; other aspect ratios are stretched.

    Args:
        images: (n, H, W, c) uint8.
        size: of the result; an axis that has it already passes untouched.

    Returns:
        (n, size, size, c) uint8.
    """
    return _resize_axis(_resize_axis(images, 2, size), 1, size)


def _resize_axis(images: UInt8[Array, "n H W c"], axis: int, size: int) -> UInt8[Array, "n h w c"]:
    if images.shape[axis] == size:
        return images
    shape = [1] * images.ndim
    shape[axis] = size
    total = jnp.full((), 1 << (_BITS - 1), jnp.int32)  # a half: the shift below then rounds half up
    take = partial(jnp.take, images, axis=axis, mode="clip")
    for index, weight in zip(*_taps(images.shape[axis], size), strict=True):
        total = total + take(index).astype(jnp.int32) * weight.reshape(shape)
    return jnp.clip(total >> _BITS, 0, 255).astype(jnp.uint8)


@cache
def _taps(
    before: int, after: int
) -> tuple[Int32[np.ndarray, "taps {after}"], Int32[np.ndarray, "taps {after}"]]:
    """Indices and weights, times 2^22, (taps, after) of the pixels that make a pixel."""
    scale = before / after
    stretch = max(scale, 1.0)
    center = (np.arange(after) + 0.5) * scale
    first = np.maximum(np.trunc(center - _SUPPORT * stretch + 0.5), 0)
    stop = np.minimum(np.trunc(center + _SUPPORT * stretch + 0.5), before)
    index = first + np.arange(int((stop - first).max()))[:, None]
    weights = np.where(index < stop, keys_cubic((index - center + 0.5) / stretch, -0.5), 0.0)
    weights /= weights.sum(axis=0)
    fixed = np.trunc(weights * (1 << _BITS) + np.copysign(0.5, weights))  # half away from zero
    return np.minimum(index, before - 1).astype(np.int32), fixed.astype(np.int32)


def keys_cubic(x: Float64[np.ndarray, "*x"], a: float) -> Float64[np.ndarray, "*x"]:
    """Cubic convolution kernel at distances x, 0 beyond 2 (Keys 1981, equation 4, any a)."""
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))
