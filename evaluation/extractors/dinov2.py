"""DINOv2 vision transformers (Oquab et al. 2023, arXiv:2304.07193) from safetensors, for FD-DINOv2.

FD-DINOv2 (Stein et al. 2023, arXiv:2306.04675) is the Fréchet distance between class tokens of
ViT-L/14 after its last norm. This follows their evaluator (layer6ai-labs/dgm-eval,
`models/dinov2.py` with its default options): images are resized to 224x224 with torchvision's
`Resize(..., BICUBIC)` on PIL images, which is Pillow's own, and normalised by ImageNet's mean and
deviation; the network is the one that `torch.hub` gives for `facebookresearch/dinov2`.

The files and their layout: `evaluation.extractors.dinov2_weights`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, UInt8
from numpy.typing import NDArray

from evaluation.extractors.batches import in_batches
from evaluation.extractors.dinov2_weights import (
    INPUT_SIZE,
    LARGE,
    DinoV2Config,
    convert,
    find_weights,
    read_config,
    read_tensors,
)
from evaluation.extractors.outputs import Outputs
from evaluation.extractors.pillow_resize import pillow_bicubic
from schemas.files import sha256_file

BATCH = 16
EPSILON = 1e-6
MEAN = (0.485, 0.456, 0.406)  # of ImageNet, by channel, of pixels in [0, 1]
DEVIATION = (0.229, 0.224, 0.225)

_HIGHEST = jax.lax.Precision.HIGHEST  # the same features on CPU and on hardware that would round
_Params = dict[str, Any]


def network(
    config: DinoV2Config, params: _Params, x: Float32[Array, "n 224 224 3"]
) -> Float32[Array, "n D"]:
    """The class token after the last norm.

    Args:
        config: sizes.
        params: as `convert` gives them.
        x: (n, 224, 224, 3) float32, normalised as `prepare` does.

    Returns:
        (n, width) float32.
    """
    n, side = len(x), INPUT_SIZE // config.patch
    patches = x.reshape(n, side, config.patch, side, config.patch, 3).transpose(0, 1, 3, 2, 4, 5)
    tokens = _linear(patches.reshape(n, side * side, -1), params["patches"])
    first = jnp.broadcast_to(params["class_token"], (n, 1, config.width))
    x = jnp.concatenate([first, tokens], axis=1) + params["positions"]
    for layer in params["layers"]:
        x = x + layer["scale1"] * _attention(_norm(x, layer["norm1"]), layer, config.heads)
        hidden = jax.nn.gelu(_linear(_norm(x, layer["norm2"]), layer["fc1"]), approximate=False)
        x = x + layer["scale2"] * _linear(hidden, layer["fc2"])
    return _norm(x[:, :1], params["norm"])[:, 0]


def _attention(x: Float32[Array, "n T D"], layer: _Params, heads: int) -> Float32[Array, "n T D"]:
    n, tokens, width = x.shape

    def split(name: str) -> jax.Array:
        return _linear(x, layer[name]).reshape(n, tokens, heads, width // heads)

    logits = jnp.einsum("nqhc,nkhc->nhqk", split("query"), split("key"), precision=_HIGHEST)
    weights = jax.nn.softmax(logits * (width // heads) ** -0.5, axis=-1)
    mixed = jnp.einsum("nhqk,nkhc->nqhc", weights, split("value"), precision=_HIGHEST)
    return _linear(mixed.reshape(n, tokens, width), layer["out"])


def _linear(x: Float32[Array, "n T D"], layer: _Params) -> Float32[Array, "n T K"]:
    return jnp.matmul(x, layer["kernel"], precision=_HIGHEST) + layer["bias"]


def _norm(x: Float32[Array, "n T D"], layer: _Params) -> Float32[Array, "n T D"]:
    x = x - x.mean(axis=-1, keepdims=True)
    deviation = jnp.sqrt(jnp.square(x).mean(axis=-1, keepdims=True) + EPSILON)
    return x / deviation * layer["weight"] + layer["bias"]


def prepare(images: UInt8[Array, "n H W 3"]) -> Float32[Array, "n 224 224 3"]:
    """uint8 (n, H, W, 3) -> float32 (n, 224, 224, 3), normalised by ImageNet's moments.

    Other sizes are stretched to 224x224 by Pillow's BICUBIC on 8-bit pixels (a = -0.5, antialiased,
    rounded to 8 bits); 224x224 passes untouched.
    """
    x = pillow_bicubic(images, INPUT_SIZE).astype(jnp.float32) / 255
    mean = np.array(MEAN, np.float32).reshape(1, 1, 1, 3)
    deviation = np.array(DEVIATION, np.float32).reshape(1, 1, 1, 3)
    return (x - mean) / deviation


@dataclass(frozen=True)
class DinoV2Extractor:
    """The loaded network, ready to be called on images."""

    name: str  # "dinov2-vitb14" or "dinov2-vitl14"
    dim: int
    digest: str  # SHA-256 (hex) of the weight file
    apply: Callable[[Any], tuple[jax.Array, jax.Array]] = field(repr=False)
    spatial_dim: int = 0
    class_names: tuple[str, ...] = ()
    last_layer: str | None = None

    def __call__(self, images: NDArray[np.uint8]) -> Outputs:
        """Features of images, in batches of 16.

        Args:
            images: (n, H, W, 3) uint8; see `prepare` for sizes other than 224x224.

        Returns:
            features (n, dim) float32, logits (n, 0) since there is no classifier, no spatial
            features.

        Raises:
            ValueError: images of another type or shape.
        """
        return in_batches(self.apply, images, BATCH)


def load_dinov2(source: str | Path = LARGE, revision: str | None = None) -> DinoV2Extractor:
    """A DINOv2 network; loaded once a process and file.

    Args:
        source: a `.safetensors` file, a directory with `model.safetensors`, or the id of a
            repository on the Hugging Face hub, which is fetched into the hub's cache unless it is
            there.
        revision: branch, tag or commit of a repository; None for the main branch.

    Raises:
        UserError: nothing there, the hub cannot be reached, no safetensors, or another network's
            tensors.
    """
    return _load(find_weights(source, revision))


@cache
def _load(file: Path) -> DinoV2Extractor:
    tensors = read_tensors(file)
    return make_extractor(read_config(tensors, file), tensors, sha256_file(file))


def make_extractor(
    config: DinoV2Config, tensors: Mapping[str, np.ndarray], digest: str
) -> DinoV2Extractor:
    """A network of tensors that `read_config` accepts; `digest` identifies them."""
    params = jax.tree.map(jnp.asarray, convert(config, tensors))

    @jax.jit
    def apply(params: _Params, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        return network(config, params, prepare(images)), jnp.zeros((len(images), 0), jnp.float32)

    return DinoV2Extractor(
        name=config.name,
        dim=config.width,
        digest=digest,
        apply=lambda images: apply(params, images),
    )
