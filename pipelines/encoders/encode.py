"""What turns a batch of pixels into the tensors of a record: a VAE, or nothing at all."""

import itertools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
from jaxtyping import UInt8
from numpy.typing import NDArray

from schemas.errors import UserError
from schemas.layout import layout_tensors
from schemas.manifest import VaeInfo
from schemas.pixels import to_uint8

Tensors = Mapping[str, NDArray[Any]]

# Pixels that a CPU encodes at once. Four images of 256 x 256 go through the encoder of Stable
# Diffusion in 0.4 GB, and 32 in 3 GB; the time an image takes is the same. A tiny encoder has 64
# channels at full resolution and little to do with each: it is held up by memory, and 64 images of
# 64 x 64 at once took 1.6 to 2.6 times as long an image as 8.
CPU_PIXELS = {"AutoencoderKL": 2**18, "AutoencoderTiny": 2**15}


class Encoder(Protocol):
    """Encodes batches of one fixed size: compiled once, and batches round alike.

    Attributes:
        devices: how many batches it works on at the same time.
        decodes: whether decoding tells how good the tensors are: not for pixels, nor without a
            decoder.
    """

    devices: int
    decodes: bool

    def start(self, pixels: UInt8[np.ndarray, "n H W 3"]) -> Callable[[], Tensors]:
        """Begin to encode (n, H, W, 3); the returned call waits for the tensors, (n, ...) each."""
        ...

    def reconstruct(self, tensors: Tensors) -> UInt8[np.ndarray, "n H W 3"]:
        """Decode stored tensors (n, ...) back to pixels (n, H, W, 3)."""
        ...


class PixelEncoder:
    """Stores the pixels as they are."""

    devices = 1
    decodes = False

    def start(self, pixels: UInt8[np.ndarray, "n H W 3"]) -> Callable[[], Tensors]:
        """See `Encoder`."""
        return lambda: {"image": pixels}

    def reconstruct(self, tensors: Tensors) -> UInt8[np.ndarray, "n H W 3"]:
        """See `Encoder`."""
        return tensors["image"]


class VaeEncoder:
    """Raw posterior moments, or raw latents of a network without a posterior, in float16.

    What overflows becomes infinite, and is rejected where records are written.

    Args:
        info: which VAE, and its precision.
        devices: of JAX; they take turns, a whole batch each, so that their number does not show in
            a record. None for all local accelerators, or one CPU.

    Raises:
        UserError: the VAE cannot be had, or is another one here.
    """

    def __init__(self, info: VaeInfo, devices: Sequence[Any] | None = None):
        import jax

        from pipelines.encoders.weights import load_vae, replaced_part

        self._vae = load_vae(info.id, info.dtype, info.revision)
        replaced = replaced_part(self._vae, info)
        if replaced == "weights":
            raise UserError(
                f"the VAE {info.id} on this worker has the digest {self._vae.digest[:12]}, not "
                f"{info.sha256[:12]}; "
                "give all workers the same weights"
            )
        if replaced == "config":
            raise UserError(
                f"the config.json of the VAE {info.id} on this worker says another network than it "
                "did to the command; "
                "give all workers the same file"
            )
        if replaced == "decoder":
            raise UserError(
                f"the decoder of the VAE {info.id} is gone here, or another one than when the "
                "dataset was begun; "
                "put it back, on all workers"
            )
        self._names = tuple(layout_tensors(info.layout, (1, 1, info.latent_channels)))
        # A decoder that came after the dataset was begun is not its own, and decodes nothing for
        # it.
        self.decodes = self._vae.decoder_digest == info.decoder_sha256 and self._vae.decodes
        self._cpu_pixels = CPU_PIXELS[info.network]
        self._on_cpu = jax.default_backend() == "cpu"
        chosen = devices or jax.local_devices()[: 1 if self._on_cpu else None]
        self.devices = len(chosen)
        copies = [
            (device, replace(self._vae, params=jax.device_put(self._vae.params, device)))
            for device in chosen
        ]
        self._turns = itertools.cycle(copies)
        # threads of one process must not compile the same program side by side
        self._compiling = threading.Lock()

    def start(self, pixels: UInt8[np.ndarray, "n H W 3"]) -> Callable[[], Tensors]:
        """See `Encoder`. JAX computes in the background until the result is asked for."""
        import jax

        with self._compiling:
            device, vae = next(self._turns)
            parts = self._parts(pixels, pixels.shape)
            begun = [vae.encode_pixels(jax.device_put(some, device)) for some in parts]

        def finish() -> Tensors:
            tensors = [np.concatenate(parts) for parts in zip(*begun, strict=True)]
            with np.errstate(over="ignore"):
                return {
                    name: tensor.astype(np.float16)
                    for name, tensor in zip(self._names, tensors, strict=True)
                }

        return finish

    def reconstruct(self, tensors: Tensors) -> UInt8[np.ndarray, "n H W 3"]:
        """See `Encoder`; decodes the means, or the latents."""
        import jax.numpy as jnp

        latents = tensors[self._names[0]].astype(np.float32)
        count, height, width, _ = latents.shape
        factor = self._vae.config.factor
        with self._compiling:
            parts = self._parts(latents, (count, factor * height, factor * width))
            begun = [self._vae.decode(jnp.asarray(some)) for some in parts]
        decoded = np.concatenate(begun)
        if np.isnan(decoded).any():
            raise UserError(
                f"the VAE {self._vae.name} decodes to NaN; give another one, or --vae-dtype float32"
            )
        return to_uint8(decoded)

    def _parts(self, rows: NDArray[Any], shape: tuple[int, ...]) -> Iterator[NDArray[Any]]:
        """Rows in parts of one shape, for images of `shape`; an accelerator takes all at once."""
        count, height, width = shape[:3]
        size = part_size(count, height * width, self._cpu_pixels) if self._on_cpu else count
        return (rows[first : first + size] for first in range(0, count, size))


def part_size(images: int, pixels: int, most: int) -> int:
    """The largest divisor of `images` with at most `most` pixels together; at least 1."""
    fitting = (
        size for size in range(2, images + 1) if images % size == 0 and size * pixels <= most
    )
    return max(fitting, default=1)


def load_encoder(vae: VaeInfo | None) -> Encoder:
    """The encoder for a VAE, or for pixels without one; this loads JAX and the weights.

    Raises:
        UserError: the VAE cannot be had, or is another one here.
    """
    return PixelEncoder() if vae is None else VaeEncoder(vae)
