"""The files of DINOv2's weights: found, recognised by their shapes, and turned into parameters.

The layout is that of `facebook/dinov2-base` and `facebook/dinov2-large` on the Hugging Face hub,
which are conversions of Meta's files. Networks with registers and the giant one are others and are
refused.

The weights know positions on a grid of 37x37 patches (518 pixels), 224 pixels have 16x16.
`interpolate_positions` does what the network of `torch.hub` does (`interpolate_offset = 0.1`: it
resamples at steps of 37/16.1 instead of 37/16). The `Dinov2Model` of Hugging Face's transformers
resamples to a size, which is `offset=0`. They read the old grid up to 0.22 patches apart, so
distances from the two do not mix.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.extractors.layout import check_layout
from evaluation.extractors.pillow_resize import keys_cubic
from schemas.errors import UserError

LARGE = "facebook/dinov2-large"
BASE = "facebook/dinov2-base"
WEIGHTS_FILE = "model.safetensors"
INPUT_SIZE = 224
HEAD_WIDTH = 64  # of every published size
SIZES: Mapping[tuple[int, int], str] = {(384, 12): "vits", (768, 12): "vitb", (1024, 24): "vitl"}

_Params = dict[str, Any]
_MASK = "embeddings.mask_token"  # of the training
_LINEARS = {
    "query": "attention.attention.query",
    "key": "attention.attention.key",
    "value": "attention.attention.value",
    "out": "attention.output.dense",
    "fc1": "mlp.fc1",
    "fc2": "mlp.fc2",
}


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


def find_weights(source: str | Path, revision: str | None = None) -> Path:
    """The weight file of a file, a directory or a repository, as for `dinov2.load_dinov2`."""
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


def read_tensors(file: Path) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file.

    Raises:
        UserError: it is none, or holds bfloat16.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(file)
    # a KeyError of types that NumPy lacks
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
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
    _refuse_variants(tensors, where)
    network = f"DINOv2 ViT in the layout of {LARGE}"
    config = _sizes({name: value.shape for name, value in tensors.items()}, where, network)
    known = {name: value for name, value in tensors.items() if name != _MASK}
    check_layout(known, _expected_shapes(config), where, network)
    return config


def _refuse_variants(tensors: Mapping[str, np.ndarray], where: Path) -> None:
    """Name the networks that are like DINOv2 and are not computed here."""
    for name, reason in (
        ("embeddings.register_tokens", "registers"),
        (f"{_layer(0)}.mlp.weights_in.weight", "SwiGLU"),
    ):
        if name in tensors:
            raise UserError(
                f"{where}: a DINOv2 network with {reason}, which is another one; give {LARGE} or "
                f"{BASE}"
            )


def _sizes(shapes: Mapping[str, tuple[int, ...]], where: Path, network: str) -> DinoV2Config:
    try:
        width, _, patch, _ = shapes["embeddings.patch_embeddings.projection.weight"]
        _, positions, _ = shapes["embeddings.position_embeddings"]
        hidden, _ = shapes[f"{_layer(0)}.mlp.fc1.weight"]
    except KeyError as error:
        raise UserError(f"{where}: no tensor {error}; give the weights of {network}") from None
    except ValueError:
        raise UserError(
            f"{where}: tensors of other dimensions; give the weights of {network}"
        ) from None
    layers = (re.match(r"encoder\.layer\.(\d+)\.", name) for name in shapes)
    depth = len({layer[1] for layer in layers if layer})
    config = DinoV2Config(width, depth, hidden, patch, math.isqrt(max(positions - 1, 0)))
    possible = min(width, patch, config.grid) > 0 and config.grid**2 == positions - 1
    if not possible or width % HEAD_WIDTH or INPUT_SIZE % patch:
        raise UserError(
            f"{where}: width {width}, patch {patch}, {positions} positions; give the weights of "
            f"{network}"
        )
    return config


def convert(config: DinoV2Config, tensors: Mapping[str, np.ndarray]) -> _Params:
    """Parameters of `dinov2.network` from tensors that `read_config` accepts.

    All are float32, vectors as (1, 1, width).
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
    moved = interpolate_positions(grid, INPUT_SIZE // config.patch, config.offset)
    moved = moved.reshape(-1, config.width)
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


def interpolate_positions(
    positions: NDArray[np.float64], side: int, offset: float
) -> NDArray[np.float64]:
    """Positions for another grid, as PyTorch's bicubic `F.interpolate` without antialiasing.

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
