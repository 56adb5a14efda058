"""DINOv2 vision transformers (Oquab et al. 2023, arXiv:2304.07193) from safetensors, for FD-DINOv2.

FD-DINOv2 (Stein et al. 2023, arXiv:2306.04675) is the Fréchet distance between class tokens of
ViT-L/14 after its last norm. This follows their evaluator (layer6ai-labs/dgm-eval,
`models/dinov2.py` with its default options): images are resized to 224x224 with torchvision's
`Resize(..., BICUBIC)` on PIL images, which is Pillow's own, and normalised by ImageNet's mean and
deviation; the network is the one that `torch.hub` gives for `facebookresearch/dinov2`.

The weights know positions on a grid of 37x37 patches (518 pixels), 224 pixels have 16x16.
`interpolate_positions` does what the hub's network does (`interpolate_offset = 0.1`: it resamples
at steps of 37/16.1 instead of 37/16). The `Dinov2Model` of Hugging Face's transformers resamples to
a size, which is `offset=0`. They read the old grid up to 0.22 patches apart, so distances from the
two do not mix.

The layout of the files is that of `facebook/dinov2-base` and `facebook/dinov2-large` on the Hugging
Face hub, which are conversions of Meta's files. Networks with registers and the giant one are
others and are refused.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from evaluation.extractors.batches import in_batches
from evaluation.extractors.layout import check_layout
from evaluation.extractors.outputs import Outputs
from evaluation.extractors.pillow_resize import keys_cubic, pillow_bicubic
from schemas.errors import UserError
from schemas.files import sha256_file

LARGE = "facebook/dinov2-large"
BASE = "facebook/dinov2-base"
WEIGHTS_FILE = "model.safetensors"
INPUT_SIZE = 224
BATCH = 16
HEAD_WIDTH = 64  # of every published size
EPSILON = 1e-6
MEAN = (0.485, 0.456, 0.406)  # of ImageNet, by channel, of pixels in [0, 1]
DEVIATION = (0.229, 0.224, 0.225)
SIZES: Mapping[tuple[int, int], str] = {(384, 12): "vits", (768, 12): "vitb", (1024, 24): "vitl"}

_HIGHEST = jax.lax.Precision.HIGHEST  # the same features on CPU and on hardware that would round
_Params = dict[str, Any]


@dataclass(frozen=True)
class DinoV2Config:
    """Sizes of a network.

    `grid` is the side of the patch grid that its positions were learnt on; `offset` see
    `interpolate_positions`.
    """

    width: int
    depth: int
    hidden: int
    patch: int
    grid: int
    offset: float = 0.1

    @property
    def heads(self) -> int:
        return self.width // HEAD_WIDTH

    @property
    def name(self) -> str:
        """`dinov2-vitl14` and its like for published sizes."""
        size = SIZES.get((self.width, self.depth), f"vit{self.depth}x{self.width}-")
        return f"dinov2-{size}{self.patch}"


def network(config: DinoV2Config, params: _Params, x: jax.Array) -> jax.Array:
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


def _attention(x: jax.Array, layer: _Params, heads: int) -> jax.Array:
    n, tokens, width = x.shape

    def split(name: str) -> jax.Array:
        return _linear(x, layer[name]).reshape(n, tokens, heads, width // heads)

    logits = jnp.einsum("nqhc,nkhc->nhqk", split("query"), split("key"), precision=_HIGHEST)
    weights = jax.nn.softmax(logits * (width // heads) ** -0.5, axis=-1)
    mixed = jnp.einsum("nhqk,nkhc->nqhc", weights, split("value"), precision=_HIGHEST)
    return _linear(mixed.reshape(n, tokens, width), layer["out"])


def _linear(x: jax.Array, layer: _Params) -> jax.Array:
    return jnp.matmul(x, layer["kernel"], precision=_HIGHEST) + layer["bias"]


def _norm(x: jax.Array, layer: _Params) -> jax.Array:
    x = x - x.mean(axis=-1, keepdims=True)
    deviation = jnp.sqrt(jnp.square(x).mean(axis=-1, keepdims=True) + EPSILON)
    return x / deviation * layer["weight"] + layer["bias"]


def prepare(images: jax.Array) -> jax.Array:
    """uint8 (n, H, W, 3) -> float32 (n, 224, 224, 3): pixels in [0, 1], minus ImageNet's mean, over
    its deviation.

    Other sizes are stretched to 224x224 by Pillow's BICUBIC on 8-bit pixels (a = -0.5, antialiased,
    rounded to 8 bits); 224x224 passes untouched.
    """
    x = pillow_bicubic(images, INPUT_SIZE).astype(jnp.float32) / 255
    mean, deviation = (
        np.array(values, np.float32).reshape(1, 1, 1, 3) for values in (MEAN, DEVIATION)
    )
    return (x - mean) / deviation


def interpolate_positions(
    positions: NDArray[np.float64], side: int, offset: float
) -> NDArray[np.float64]:
    """Position embeddings for another grid, as PyTorch's bicubic `F.interpolate` without
    antialiasing gives them.

    Position i of the new grid reads the old one at (i + ½) s - ½ with the cubic kernel of Keys at a
    = -0.75; taps beyond the border repeat it. The step s is grid / (side + offset): with 0.1 that
    of `scale_factor=(side + 0.1) / grid`, as facebookresearch/dinov2 calls it
    (`interpolate_pos_encoding`); with 0 that of `size=(side, side)`.

    Args:
        positions: (grid, grid, width).
        side: of the new grid; the old one's gives the positions back, as the reference does.
        offset: of the reference, in [0, 1).

    Returns:
        (side, side, width).
    """
    grid = len(positions)
    if side == grid:
        return positions
    center = (np.arange(side) + 0.5) * (grid / (side + offset)) - 0.5
    taps = np.floor(center)[:, None] + np.arange(-1, 3)
    matrix = np.zeros((side, grid))
    np.add.at(
        matrix,
        (np.arange(side)[:, None], np.clip(taps, 0, grid - 1).astype(int)),
        keys_cubic(taps - center[:, None], -0.75),
    )
    return np.einsum("ai,bj,ijc->abc", matrix, matrix, positions, optimize=True)


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


def find_weights(source: str | Path, revision: str | None = None) -> Path:
    """The weight file of a file, a directory or a repository. Arguments and errors: see
    `load_dinov2`.
    """
    path = Path(source)
    is_repository = isinstance(source, str) and re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", source)
    if not path.exists() and is_repository:
        from pipelines.encoders.hub import fetch_file

        return fetch_file(str(source), WEIGHTS_FILE, revision)
    file = path / WEIGHTS_FILE if path.is_dir() else path
    if not file.is_file():
        raise UserError(
            f"{file}: no such file; give DINOv2 weights as safetensors, or a hub id such as {LARGE}"
        )
    if revision is not None:
        raise UserError(
            f"{file} is a local file and has no revision {revision!r}; leave the revision out"
        )
    return file


@cache
def _load(file: Path) -> DinoV2Extractor:
    tensors = read_tensors(file)
    return make_extractor(read_config(tensors, file), tensors, sha256_file(file))


def make_extractor(
    config: DinoV2Config, tensors: Mapping[str, np.ndarray], digest: str
) -> DinoV2Extractor:
    """A network of tensors with the names and shapes that `read_config` accepts; `digest` tells
    which they are.
    """
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


def read_tensors(file: Path) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file.

    Raises:
        UserError: it is none, or holds bfloat16.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(file)
    except (
        SafetensorError,
        KeyError,
        TypeError,
        ValueError,
    ) as error:  # a KeyError of types that NumPy lacks
        raise UserError(
            f"{file}: not safetensors with float32 or float16 ({type(error).__name__}: {error}); "
            f"give the {WEIGHTS_FILE} of {LARGE} or {BASE}"
        ) from error


def read_config(tensors: Mapping[str, np.ndarray], where: Path) -> DinoV2Config:
    """The sizes, from the shapes.

    Args:
        tensors: by name, in the layout of the Hugging Face hub.
        where: the file, for messages.

    Raises:
        UserError: another layout, registers, a gated MLP, or sizes that no such network has.
    """
    what = f"DINOv2 ViT in the layout of {LARGE}"
    for name, reason in (
        ("embeddings.register_tokens", "registers"),
        (f"{_layer(0)}.mlp.weights_in.weight", "SwiGLU"),
    ):
        if name in tensors:
            raise UserError(
                f"{where}: a DINOv2 network with {reason}, which is another one; give {LARGE} or "
                f"{BASE}"
            )
    shapes = {name: value.shape for name, value in tensors.items()}
    try:
        width, _, patch, _ = shapes["embeddings.patch_embeddings.projection.weight"]
        _, positions, _ = shapes["embeddings.position_embeddings"]
        hidden, _ = shapes[f"{_layer(0)}.mlp.fc1.weight"]
    except KeyError as error:
        raise UserError(f"{where}: no tensor {error}; give the weights of {what}") from None
    except ValueError:
        raise UserError(
            f"{where}: tensors of other dimensions; give the weights of {what}"
        ) from None
    depth = len(
        {match[1] for name in shapes if (match := re.match(r"encoder\.layer\.(\d+)\.", name))}
    )
    config = DinoV2Config(width, depth, hidden, patch, math.isqrt(max(positions - 1, 0)))
    possible = min(width, patch, config.grid) > 0 and config.grid**2 == positions - 1
    if not possible or width % HEAD_WIDTH or INPUT_SIZE % patch:
        raise UserError(
            f"{where}: width {width}, patch {patch}, {positions} positions; give the weights of "
            f"{what}"
        )
    known = {name: value for name, value in tensors.items() if name != _MASK}
    check_layout(known, _expected_shapes(config), where, what)
    return config


def convert(config: DinoV2Config, tensors: Mapping[str, np.ndarray]) -> _Params:
    """The parameters of `network` from tensors that `read_config` has seen: float32, vectors as (1,
    1, width).
    """

    def vector(name: str) -> NDArray[np.float32]:
        return tensors[name].astype(np.float32).reshape(1, 1, -1)

    def linear(name: str) -> _Params:
        return {
            "kernel": tensors[f"{name}.weight"].astype(np.float32).T,
            "bias": vector(f"{name}.bias"),
        }

    def norm(name: str) -> _Params:
        return {part: vector(f"{name}.{part}") for part in ("weight", "bias")}

    def layer(name: str) -> _Params:
        linears = {ours: linear(f"{name}.{theirs}") for ours, theirs in _LINEARS.items()}
        norms = {part: norm(f"{name}.{part}") for part in ("norm1", "norm2")}
        scales = {f"scale{part}": vector(f"{name}.layer_scale{part}.lambda1") for part in (1, 2)}
        return linears | norms | scales

    positions = tensors["embeddings.position_embeddings"][0].astype(np.float64)
    grid = positions[1:].reshape(config.grid, config.grid, config.width)
    moved = interpolate_positions(grid, INPUT_SIZE // config.patch, config.offset).reshape(
        -1, config.width
    )
    patches = tensors["embeddings.patch_embeddings.projection.weight"].astype(np.float32)
    return {
        "patches": {
            "kernel": patches.transpose(2, 3, 1, 0).reshape(-1, config.width),
            "bias": vector("embeddings.patch_embeddings.projection.bias"),
        },
        "class_token": vector("embeddings.cls_token"),
        "positions": np.concatenate([positions[:1], moved])[None].astype(np.float32),
        "layers": [layer(_layer(index)) for index in range(config.depth)],
        "norm": norm("layernorm"),
    }


_MASK = "embeddings.mask_token"  # of the training
_LINEARS = {
    "query": "attention.attention.query",
    "key": "attention.attention.key",
    "value": "attention.attention.value",
    "out": "attention.output.dense",
    "fc1": "mlp.fc1",
    "fc2": "mlp.fc2",
}


def _layer(index: int) -> str:
    return f"encoder.layer.{index}"


def _expected_shapes(config: DinoV2Config) -> dict[str, tuple[int, ...]]:
    width, hidden = config.width, config.hidden
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.cls_token": (1, 1, width),
        "embeddings.position_embeddings": (1, config.grid**2 + 1, width),
        "embeddings.patch_embeddings.projection.weight": (width, 3, config.patch, config.patch),
        "embeddings.patch_embeddings.projection.bias": (width,),
        "layernorm.weight": (width,),
        "layernorm.bias": (width,),
    }
    outputs, inputs = {"fc1": hidden}, {"fc2": hidden}
    for index in range(config.depth):
        name = _layer(index)
        for ours, theirs in _LINEARS.items():
            shapes[f"{name}.{theirs}.weight"] = (outputs.get(ours, width), inputs.get(ours, width))
            shapes[f"{name}.{theirs}.bias"] = (outputs.get(ours, width),)
        for part in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"):
            shapes[f"{name}.{part}"] = (width,)
        shapes |= {f"{name}.layer_scale{part}.lambda1": (width,) for part in (1, 2)}
    return shapes
