"""Latents to uint8 pixels: denormalise, decode in batches of one shape, quantise once."""

import functools
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from schemas.errors import UserError
from schemas.layout import Layout
from schemas.manifest import Manifest, Normalization, VaeInfo
from schemas.pixels import to_uint8
from schemas.record import Record

if TYPE_CHECKING:
    from pipelines.vae_weights import Vae

_PIXELS_A_BATCH = 2**20  # 16 images of 256 x 256; a batch of this size decodes in about 2 GB with the SD VAE
_MOST_IMAGES = 256
_LOADING = threading.Lock()  # functools.cache alone would load twice when two threads ask at once


@functools.cache
def _vae(name: str, revision: str | None, sha256: str, config_sha256: str) -> "Vae":
    from pipelines.vae_weights import load_vae

    vae = load_vae(name, revision=revision)
    if vae.digest != sha256:
        raise UserError(
            f"VAE {name}: its weights ({vae.digest[:12]}...) are not those that made the latents "
            f"({sha256[:12]}...); put the right VAE there"
        )
    if vae.config.digest() != config_sha256:
        raise UserError(f"VAE {name}: its config.json is not that which made the latents; put the right VAE there")
    return vae


def decoding_vae(info: VaeInfo) -> "Vae":
    """The VAE that a manifest names, once a process. It decodes in float32, whatever the latents were encoded in.

    Raises:
        UserError: it cannot be had, or has other weights or another config than the latents were made with.
    """
    with _LOADING:
        return _vae(info.id, info.revision, info.sha256, info.config_sha256)


def decode_batch_size(resolution: int) -> int:
    """Images decoded at once."""
    return max(1, min(_MOST_IMAGES, _PIXELS_A_BATCH // resolution**2))


def denormalise(latents: NDArray[np.floating], normalization: Normalization) -> NDArray[np.float32]:
    """Model scale to raw: (n, h, w, c) z -> z / scale + offset, float32."""
    scale = np.asarray(normalization.scale, np.float32)[None, None, None, :]
    offset = np.asarray(normalization.offset, np.float32)[None, None, None, :]
    return latents.astype(np.float32) / scale + offset


def decode_raw(raw: NDArray[np.floating], vae: VaeInfo | None, resolution: int) -> NDArray[np.uint8]:
    """Raw latents (n, h, w, c) -> uint8 images (n, H, W, 3).

    The decoder's output is in [-1, 1] already and goes to `to_uint8` as it is: scaled once more it would reach the
    extractor in [-3, 1]. With `vae` None the raw tensors are pixels in [-1, 1].
    """
    if vae is None:
        return to_uint8(raw)
    import jax.numpy as jnp

    model, size = decoding_vae(vae), decode_batch_size(resolution)
    images = np.empty((len(raw), resolution, resolution, 3), np.uint8)
    for start in range(0, len(raw), size):
        part = raw[start : start + size].astype(np.float32)
        padding = [(0, size - len(part)), (0, 0), (0, 0), (0, 0)]
        decoded = np.asarray(model.decode(jnp.asarray(np.pad(part, padding))))
        images[start : start + len(part)] = to_uint8(decoded[: len(part)])
    return images


def decode_samples(
    latents: NDArray[np.floating], normalization: Normalization, vae: VaeInfo | None, resolution: int
) -> NDArray[np.uint8]:
    """Latents in the model's scale -> uint8 images (n, H, W, 3)."""
    return decode_raw(denormalise(latents, normalization), vae, resolution)


def decode_records(manifest: Manifest, records: Sequence[Record]) -> NDArray[np.uint8]:
    """Pixels (n, H, W, 3) of records of any layout: the posterior mean of moments, samples, or the stored pixels."""

    def stack(name: str) -> NDArray[Any]:
        return np.stack([record.tensors[name] for record in records])

    if not records:
        return np.zeros((0, manifest.resolution, manifest.resolution, 3), np.uint8)
    if manifest.layout is Layout.IMAGE:
        return stack("image")
    if manifest.layout is Layout.MOMENTS:
        return decode_raw(stack("mean"), manifest.vae, manifest.resolution)
    return decode_samples(stack("latent"), manifest.model_normalization(), manifest.vae, manifest.resolution)
