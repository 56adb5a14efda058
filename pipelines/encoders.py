"""What turns a batch of pixels into the tensors of a record: a VAE, or nothing at all."""

import threading
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pipelines.settings import Settings
from schemas.errors import UserError
from schemas.layout import Layout
from schemas.pixels import from_uint8, to_uint8

Tensors = Mapping[str, NDArray[Any]]


class Encoder(Protocol):
    """Works on batches of one fixed size, so that everything is compiled once and batches round alike."""

    def start(self, pixels: NDArray[np.uint8]) -> Callable[[], Tensors]:
        """Begin to encode (n, H, W, 3); the result is a call that waits for the tensors, (n, ...) each."""
        ...

    def reconstruct(self, tensors: Tensors) -> NDArray[np.uint8]:
        """Decode stored tensors (n, ...) back to pixels (n, H, W, 3)."""
        ...


class PixelEncoder:
    """Stores the pixels as they are."""

    def start(self, pixels: NDArray[np.uint8]) -> Callable[[], Tensors]:
        """See `Encoder`."""
        return lambda: {"image": pixels}

    def reconstruct(self, tensors: Tensors) -> NDArray[np.uint8]:
        """See `Encoder`."""
        return tensors["image"]


class VaeEncoder:
    """Raw posterior moments in float16. What overflows becomes infinite, and is rejected where records are written."""

    def __init__(self, name: str, dtype: str, digest: str):
        from pipelines.vae_weights import load_vae

        self._vae = load_vae(name, dtype)
        if self._vae.digest != digest:
            raise UserError(
                f"the VAE {name} on this worker has the digest {self._vae.digest[:12]}, not {digest[:12]}; "
                "give all workers the same weights"
            )
        self._compiling = threading.Lock()  # threads of one process must not compile the same program side by side

    def start(self, pixels: NDArray[np.uint8]) -> Callable[[], Tensors]:
        """See `Encoder`. JAX computes in the background until the result is asked for."""
        import jax.numpy as jnp

        with self._compiling:
            mean, logvar = self._vae.encode(jnp.asarray(from_uint8(pixels)))

        def finish() -> Tensors:
            with np.errstate(over="ignore"):
                return {
                    "mean": np.asarray(mean).astype(np.float16),
                    "logvar": np.asarray(logvar).astype(np.float16),
                }

        return finish

    def reconstruct(self, tensors: Tensors) -> NDArray[np.uint8]:
        """See `Encoder`; decodes the means."""
        import jax.numpy as jnp

        with self._compiling:
            images = self._vae.decode(jnp.asarray(tensors["mean"], jnp.float32))
        decoded = np.asarray(images)
        if np.isnan(decoded).any():
            raise UserError(f"the VAE {self._vae.name} decodes to NaN; give another one, or --vae-dtype float32")
        return to_uint8(decoded)


def load_encoder(settings: Settings) -> Encoder:
    """The encoder that the settings ask for; this is where JAX and the weights are loaded.

    Raises:
        UserError: the VAE cannot be had, or is another one here.
    """
    return _LOADERS[settings.layout](settings)


def _load_vae_encoder(settings: Settings) -> Encoder:
    assert settings.vae is not None
    return VaeEncoder(settings.vae.id, settings.vae.dtype, settings.vae.sha256)


_LOADERS: dict[Layout, Callable[[Settings], Encoder]] = {
    Layout.IMAGE: lambda settings: PixelEncoder(),
    Layout.MOMENTS: _load_vae_encoder,
}
