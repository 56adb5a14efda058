"""Latents to uint8 pixels: decode in batches of one shape, quantise once."""

import functools
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Float32, UInt8
from numpy.typing import NDArray

from schemas.errors import UserError
from schemas.layout import Layout
from schemas.manifest import Manifest, Normalization, VaeInfo
from schemas.pixels import to_uint8
from schemas.record import Record

if TYPE_CHECKING:
    from pipelines.encoders.weights import Vae

# 4 images of 256 x 256. More is no faster on a CPU; on a GPU XLA may choose convolutions in float32
# that want 8 GiB of scratch an image.
_PIXELS_A_BATCH = 2**18
_MOST_IMAGES = 256
# (digest of a VAE, resolution) -> images, where memory has run out
_fitting: dict[tuple[str, int], int] = {}
_LOADING = threading.Lock()  # functools.cache alone would load twice when two threads ask at once


@functools.cache
def _vae(info: VaeInfo) -> "Vae":
    from pipelines.encoders.weights import load_vae, replaced_part

    vae = load_vae(info.id, revision=info.revision)
    replaced = replaced_part(vae, info)
    if replaced == "weights":
        raise UserError(
            f"VAE {info.id}: its weights ({vae.digest[:12]}...) are not those that made the "
            f"latents ({info.sha256[:12]}...); put the right VAE there"
        )
    if replaced == "config":
        raise UserError(
            f"VAE {info.id}: its config.json is not that which made the latents; put the right "
            "VAE there"
        )
    if not vae.decodes:
        raise UserError(
            f"VAE {info.id}: there is no decoder; put NAME_decoder.safetensors beside "
            "NAME_encoder.safetensors there"
        )
    if replaced == "decoder":
        raise UserError(
            f"VAE {info.id}: its decoder ({str(vae.decoder_digest)[:12]}...) is not the one that "
            "stood beside the encoder when the latents were made "
            f"({str(info.decoder_sha256)[:12]}...); put the right decoder there"
        )
    return vae


def decoding_vae(info: VaeInfo) -> "Vae":
    """The VAE that a manifest names, loaded once a process, in float32 whatever encoded.

    Raises:
        UserError: it cannot be had, or has other weights or another config than the latents were
            made with.
    """
    with _LOADING:
        # Any, since pyright does not know that a frozen table has a hash.
        decoder: Any = info.model_copy(update={"dtype": "float32"})
        return _vae(decoder)


def decode_batch_size(resolution: int) -> int:
    """Images decoded at once."""
    return max(1, min(_MOST_IMAGES, _PIXELS_A_BATCH // resolution**2))


def decode_raw(
    raw: Float[np.ndarray, "n h w c"], vae: VaeInfo | None, resolution: int
) -> UInt8[np.ndarray, "n {resolution} {resolution} 3"]:
    """Raw latents (n, h, w, c) -> uint8 images (n, H, W, 3).

    The decoder's output is in [-1, 1] already and goes to `to_uint8` as it is: scaled once more it
    would reach the extractor in [-3, 1]. With `vae` None the raw tensors are pixels in [-1, 1].

    A batch that does not fit into memory is halved until it does, for the rest of the process.

    Raises:
        UserError: the VAE is not there or another, or one image does not fit.
    """
    if vae is None:
        return to_uint8(raw)
    import jax

    model = decoding_vae(vae)
    images = np.empty((len(raw), resolution, resolution, 3), np.uint8)
    start = 0
    while start < len(raw):
        size = min(
            _fitting.get((vae.sha256, resolution), _MOST_IMAGES), decode_batch_size(resolution)
        )
        part = raw[start : start + size].astype(np.float32)
        try:
            decoded = _decode(model, part, size)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            if size == 1:
                raise UserError(
                    f"out of memory: VAE {vae.id} does not decode one image of {resolution} "
                    "pixels; leave it more memory, or use a device that has more"
                ) from error
            _fitting[vae.sha256, resolution] = min(
                size // 2, _fitting.get((vae.sha256, resolution), size)
            )
        else:
            images[start : start + len(part)] = to_uint8(decoded)
            start += len(part)
    return images


def _decode(
    model: "Vae", part: Float32[np.ndarray, "n h w c"], size: int
) -> Float32[np.ndarray, "n H W 3"]:
    """Decode at most `size` latents as a batch of `size`."""
    import jax.numpy as jnp

    padding = [(0, size - len(part)), (0, 0), (0, 0), (0, 0)]
    return np.asarray(model.decode(jnp.asarray(np.pad(part, padding))))[: len(part)]


def decode_samples(
    latents: Float[np.ndarray, "n h w c"],
    normalization: Normalization,
    vae: VaeInfo | None,
    resolution: int,
) -> UInt8[np.ndarray, "n {resolution} {resolution} 3"]:
    """Latents in the model's scale -> uint8 images (n, H, W, 3)."""
    return decode_raw(normalization.undo(latents), vae, resolution)


def decode_records(manifest: Manifest, records: Sequence[Record]) -> UInt8[np.ndarray, "n H W 3"]:
    """Pixels (n, H, W, 3) of records: decoded means of moments or latents, or the stored ones."""

    def stack(name: str) -> NDArray[Any]:
        return np.stack([record.tensors[name] for record in records])

    if not records:
        return np.zeros((0, manifest.resolution, manifest.resolution, 3), np.uint8)
    if manifest.layout is Layout.IMAGE:
        return stack("image")
    if manifest.layout is Layout.MOMENTS:
        return decode_raw(stack("mean"), manifest.vae, manifest.resolution)
    return decode_samples(
        stack("latent"), manifest.stored_normalization(), manifest.vae, manifest.resolution
    )
