"""Evaluators' ways to bring images to their network's size; other ways, other numbers.

Every resize takes uint8 (n, H, W, 3) and gives float32 (n, size, size, 3), still in [0, 255],
unrounded. Two of them sample without antialiasing, which is what the evaluators they are named
after do, and why their distances differ from clean-fid's (Parmar et al. 2022, "On Aliased Resizing
and Surprising Subtleties in GAN Evaluation").
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Num, UInt8
from numpy.typing import NDArray


def tf1_bilinear(images: Num[Array, "n H W c"], size: int) -> Float32[Array, "n {size} {size} c"]:
    """TensorFlow 1's `resize_bilinear` without align_corners or half-pixel centres.

    Output pixel i samples at i * H / size; neighbours beyond the edge repeat it. Columns first,
    then rows, each a + (b - a) * w in float32: the kernel's order
    (tensorflow/core/kernels/resize_bilinear_op.cc).
    """
    x = images.astype(jnp.float32)
    for axis in (2, 1):
        position = np.arange(size, dtype=np.float32) * np.float32(x.shape[axis] / size)
        first, second, weight = _neighbours(x, axis, position)
        x = first + (second - first) * weight
    return x


def torch_bilinear(images: Num[Array, "n H W c"], size: int) -> Float32[Array, "n {size} {size} c"]:
    """PyTorch's `F.interpolate(mode="bilinear", align_corners=False)`, without antialiasing.

    Output pixel i samples at (i + ½) H / size - ½, not below 0; neighbours beyond the edge repeat
    it (aten/src/ATen/native/UpSample.h). Equal to rounding: PyTorch's own order of sums depends on
    its build.
    """
    x = images.astype(jnp.float32)
    for axis in (2, 1):
        scale = float(np.float32(x.shape[axis] / size))
        # rounded once: a fused multiply-add
        fused = (scale * (np.arange(size) + 0.5) - 0.5).astype(np.float32)
        first, second, weight = _neighbours(x, axis, np.maximum(fused, np.float32(0)))
        x = first * (1 - weight) + second * weight
    return x


def pil_bicubic(
    images: UInt8[np.ndarray, "n H W c"], size: int
) -> Float32[np.ndarray, "n {size} {size} c"]:
    """Pillow's antialiased bicubic (a = -0.5) of float32 channels, clipped: clean-fid's.

    Runs on the host and needs Pillow.
    """
    from PIL import Image

    def channel(values: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.asarray(Image.fromarray(values).resize((size, size), Image.Resampling.BICUBIC))

    planes = np.moveaxis(images, 3, 1).astype(np.float32)
    resized = np.empty((*planes.shape[:2], size, size), np.float32)
    for index in np.ndindex(planes.shape[:2]):
        resized[index] = channel(np.ascontiguousarray(planes[index]))
    return np.ascontiguousarray(np.moveaxis(resized.clip(0, 255), 1, 3))


def by_128(x: Float32[Array, "n H W c"]) -> Float32[Array, "n H W c"]:
    """[0, 255] -> [-1, 0.9921875], (x - 128) / 128, as the Inception graph of 2015 has it."""
    return (x - 128) / 128


def by_255(x: Float32[Array, "n H W c"]) -> Float32[Array, "n H W c"]:
    """[0, 255] -> [-1, 1], 2 x / 255 - 1."""
    return x / 255 * 2 - 1


class Preparation(NamedTuple):
    """Steps before a network: `host` outside of its compiled function, `device` within."""

    host: Callable[[NDArray[np.uint8], int], NDArray[np.generic]]
    device: Callable[[jax.Array, int], jax.Array]

    def __call__(
        self, images: UInt8[np.ndarray, "n H W 3"], size: int
    ) -> Float32[Array, "n {size} {size} 3"]:
        """uint8 (n, H, W, 3) -> float32 (n, size, size, 3) in the network's range."""
        return self.device(jnp.asarray(self.host(images, size)), size)


def _as_they_are(images: NDArray[np.uint8], size: int) -> NDArray[np.generic]:
    return images


PREPARATIONS: Mapping[str, Preparation] = {
    "tf1-bilinear": Preparation(_as_they_are, lambda x, size: by_128(tf1_bilinear(x, size))),
    "torch-bilinear": Preparation(_as_they_are, lambda x, size: by_255(torch_bilinear(x, size))),
    "pil-bicubic": Preparation(pil_bicubic, lambda x, size: by_128(x)),
}


def _neighbours(
    x: Float32[Array, "n H W c"], axis: int, position: Float32[np.ndarray, " size"]
) -> tuple[Float32[Array, "n h w c"], Float32[Array, "n h w c"], Float32[Array, "1 h1 w1 1"]]:
    """Values on both sides of positions along an axis, and the distance to the first."""
    low = position.astype(np.int32)
    high = np.minimum(low + 1, x.shape[axis] - 1)
    shape = [1] * x.ndim
    shape[axis] = len(position)
    weight = jnp.asarray((position - low.astype(np.float32)).reshape(shape))
    return jnp.take(x, low, axis=axis), jnp.take(x, high, axis=axis), weight
