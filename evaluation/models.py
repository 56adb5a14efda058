"""Heavy models, loaded on first use and once a process: Beam's threads share them."""

import functools
import threading
from typing import TYPE_CHECKING

from evaluation.extractors import Extractor, load_extractor
from schemas.errors import UserError
from schemas.manifest import VaeInfo

if TYPE_CHECKING:
    from pipelines.vae_weights import Vae

_LOADING = threading.Lock()  # functools.cache alone would load twice when two threads ask at once


@functools.cache
def _extractor(name: str) -> Extractor:
    return load_extractor(name)


def extractor(name: str) -> Extractor:
    """The feature network of a name. Raises `UserError` for an unknown one."""
    with _LOADING:
        return _extractor(name)


@functools.cache
def _vae(name: str, sha256: str) -> "Vae":
    from pipelines.vae_weights import load_vae

    vae = load_vae(name)
    if vae.digest != sha256:
        raise UserError(
            f"VAE {name}: its weights ({vae.digest[:12]}...) are not those that made the latents "
            f"({sha256[:12]}...); put the right VAE there"
        )
    return vae


def vae(info: VaeInfo) -> "Vae":
    """The VAE that a manifest names.

    Raises:
        UserError: it cannot be had, or has other weights than the latents were made with.
    """
    with _LOADING:
        return _vae(info.id, info.sha256)
