"""The Inception network behind published FIDs, in JAX.

It is Inception-v3 (Szegedy et al. 2016) as TensorFlow released it on 2015-12-05, in the layout of
pytorch-fid's `fid_inception_v3` and torch-fidelity's port. It differs from torchvision's model in
its weights, in average pools that do not count the padding, and in a last block that pools by
maximum. Weights: `evaluation.extractors.inception_weights`.

Spatial features, for sFID (Nash et al. 2021): ADM's evaluator takes `mixed_6/conv:0`, its first 7
channels (openai/guided-diffusion, evaluations/evaluator.py). In that graph `mixed_6` is the block
that PyTorch ports call Mixed_6d (torch-fidelity, utils/util_convert_inception_weights.py); the
operation called `conv` follows `conv/batchnorm` and is its activation: the graph lists conv/Conv2D,
conv/batchnorm, conv/CheckNumerics, conv/control_dependency, conv. So they are the 1x1 branch of
Mixed_6d after its ReLU, which are the first channels of that block's output: 17 x 17 x 7 = 2023,
position by position.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float32, Num
from numpy.typing import NDArray

from evaluation.extractors.batches import in_batches
from evaluation.extractors.inception_weights import FEATURES_SHA256, read_inception
from evaluation.extractors.outputs import Outputs
from evaluation.extractors.resize import PREPARATIONS
from schemas.errors import UserError

INPUT_SIZE = 299
DIM = 2048
CLASSES = 1008
SPATIAL_CHANNELS = 7
SPATIAL_DIM = 17 * 17 * SPATIAL_CHANNELS
EPSILON = 1e-3  # of the batch norms

Padding = Literal["SAME", "VALID"]
Params = dict[str, Any]


@dataclass(frozen=True)
class _Conv:
    """Convolution, batch norm, ReLU."""

    name: str
    width: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padding: Padding = "SAME"


@dataclass(frozen=True)
class _Pool:
    """3x3; a mean leaves the padding out of its count."""

    kind: Literal["max", "mean"]
    stride: int = 1
    padding: Padding = "SAME"


@dataclass(frozen=True)
class _Block:
    """Branches side by side, their channels concatenated; `name` prefixes those within."""

    name: str
    branches: tuple["_Steps", ...]


_Steps = tuple[_Conv | _Pool | _Block, ...]
_HALVE = _Pool("max", 2, "VALID")


def _a(name: str, pooled: int) -> _Block:
    conv1 = (_Conv("branch1x1", 64),)
    conv5 = (_Conv("branch5x5_1", 48), _Conv("branch5x5_2", 64, (5, 5)))
    conv3 = (
        _Conv("branch3x3dbl_1", 64),
        _Conv("branch3x3dbl_2", 96, (3, 3)),
        _Conv("branch3x3dbl_3", 96, (3, 3)),
    )
    return _Block(name, (conv1, conv5, conv3, (_Pool("mean"), _Conv("branch_pool", pooled))))


def _b(name: str) -> _Block:
    conv3 = (_Conv("branch3x3", 384, (3, 3), 2, "VALID"),)
    twice = (
        _Conv("branch3x3dbl_1", 64),
        _Conv("branch3x3dbl_2", 96, (3, 3)),
        _Conv("branch3x3dbl_3", 96, (3, 3), 2, "VALID"),
    )
    return _Block(name, (conv3, twice, (_HALVE,)))


def _c(name: str, width: int) -> _Block:
    across, down = (1, 7), (7, 1)
    conv1 = (_Conv("branch1x1", 192),)
    once = (
        _Conv("branch7x7_1", width),
        _Conv("branch7x7_2", width, across),
        _Conv("branch7x7_3", 192, down),
    )
    kernels = ((1, 1), down, across, down, across)
    widths = (width, width, width, width, 192)
    twice = tuple(
        _Conv(f"branch7x7dbl_{i + 1}", w, k)
        for i, (w, k) in enumerate(zip(widths, kernels, strict=True))
    )
    return _Block(name, (conv1, once, twice, (_Pool("mean"), _Conv("branch_pool", 192))))


def _d(name: str) -> _Block:
    conv3 = (_Conv("branch3x3_1", 192), _Conv("branch3x3_2", 320, (3, 3), 2, "VALID"))
    conv7 = (
        _Conv("branch7x7x3_1", 192),
        _Conv("branch7x7x3_2", 192, (1, 7)),
        _Conv("branch7x7x3_3", 192, (7, 1)),
        _Conv("branch7x7x3_4", 192, (3, 3), 2, "VALID"),
    )
    return _Block(name, (conv3, conv7, (_HALVE,)))


def _e(name: str, pool: Literal["max", "mean"]) -> _Block:
    def fork(prefix: str) -> _Block:
        return _Block(
            "", ((_Conv(f"{prefix}a", 384, (1, 3)),), (_Conv(f"{prefix}b", 384, (3, 1)),))
        )

    conv1 = (_Conv("branch1x1", 320),)
    once = (_Conv("branch3x3_1", 384), fork("branch3x3_2"))
    twice = (
        _Conv("branch3x3dbl_1", 448),
        _Conv("branch3x3dbl_2", 384, (3, 3)),
        fork("branch3x3dbl_3"),
    )
    return _Block(name, (conv1, once, twice, (_Pool(pool), _Conv("branch_pool", 192))))


_TO_SPATIAL: _Steps = (
    _Conv("Conv2d_1a_3x3", 32, (3, 3), 2, "VALID"),
    _Conv("Conv2d_2a_3x3", 32, (3, 3), 1, "VALID"),
    _Conv("Conv2d_2b_3x3", 64, (3, 3)),
    _HALVE,
    _Conv("Conv2d_3b_1x1", 80),
    _Conv("Conv2d_4a_3x3", 192, (3, 3), 1, "VALID"),
    _HALVE,
    _a("Mixed_5b", 32),
    _a("Mixed_5c", 64),
    _a("Mixed_5d", 64),
    _b("Mixed_6a"),
    _c("Mixed_6b", 128),
    _c("Mixed_6c", 160),
    _c("Mixed_6d", 160),
)
_TO_POOL: _Steps = (
    _c("Mixed_6e", 192),
    _d("Mixed_7a"),
    _e("Mixed_7b", "mean"),
    _e("Mixed_7c", "max"),
)


def _convolutions(
    steps: _Steps, channels: int, prefix: str = ""
) -> Iterator[tuple[str, tuple[int, int, int, int]]]:
    """Name and weight shape (out, in, kernel height, width) of every convolution, in order."""
    for step in steps:
        if isinstance(step, _Conv):
            yield prefix + step.name, (step.width, channels, *step.kernel)
        elif isinstance(step, _Block):
            for branch in step.branches:
                yield from _convolutions(
                    branch, channels, f"{prefix}{step.name}." if step.name else prefix
                )
        channels = _width(step, channels)


def _width(step: _Conv | _Pool | _Block, channels: int) -> int:
    """Channels that come out of a step."""
    if isinstance(step, _Block):
        widths = []
        for branch in step.branches:
            width = channels
            for inner in branch:
                width = _width(inner, width)
            widths.append(width)
        return sum(widths)
    return step.width if isinstance(step, _Conv) else channels


def layout() -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors by pytorch-fid's names, in PyTorch's order of axes."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, shape in _convolutions((*_TO_SPATIAL, *_TO_POOL), 3):
        shapes[f"{name}.conv.weight"] = shape
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.bn.{part}"] = shape[:1]
    return {**shapes, "fc.weight": (CLASSES, DIM), "fc.bias": (CLASSES,)}


def network(
    params: Params, x: Float32[Array, "n 299 299 3"]
) -> tuple[Float32[Array, "n d"], Float32[Array, "n k"], Float32[Array, "n s"]]:
    """Features (n, 2048), logits without bias (n, 1008), spatial features (n, 2023).

    Without the last layer there are no logits: (n, 0).

    Args:
        params: from `convert`.
        x: (n, 299, 299, 3) float32 in about [-1, 1].
    """
    x = _run(_TO_SPATIAL, params, x)
    spatial = x[..., :SPATIAL_CHANNELS].reshape(len(x), -1)
    features = _run(_TO_POOL, params, x).mean(axis=(1, 2))
    return features, jnp.dot(features, params["fc"], precision=lax.Precision.HIGHEST), spatial


def _run(
    steps: _Steps, params: Params, x: Float32[Array, "n H W c"], prefix: str = ""
) -> Float32[Array, "n h w d"]:
    for step in steps:
        if isinstance(step, _Conv):
            x = _convolve(step, params[prefix + step.name], x)
        elif isinstance(step, _Pool):
            x = _pool(step, x)
        else:
            inner = f"{prefix}{step.name}." if step.name else prefix
            x = jnp.concatenate(
                [_run(branch, params, x, inner) for branch in step.branches], axis=-1
            )
    return x


def _convolve(
    step: _Conv, params: Mapping[str, jax.Array], x: Float32[Array, "n H W c"]
) -> Float32[Array, "n h w d"]:
    # the same on a CPU and on what would round
    kernel = params["kernel"]
    precision = lax.Precision.HIGHEST
    if step.kernel == (1, 1) and step.stride == 1:
        x = jnp.matmul(x, kernel[0, 0], precision=precision)
    else:
        # On a CPU XLA takes half as long for a border that is cut off again as for none.
        uncut = step.padding == "VALID" and step.stride == 1
        dimensions, padding = ("NHWC", "HWIO", "NHWC"), "SAME" if uncut else step.padding
        strides = (step.stride, step.stride)
        x = lax.conv_general_dilated(
            x, kernel, strides, padding, dimension_numbers=dimensions, precision=precision
        )
        if uncut:
            rows, columns = (size // 2 for size in step.kernel)
            x = x[:, rows : x.shape[1] - rows, columns : x.shape[2] - columns]
    return jax.nn.relu(x * params["scale"] + params["shift"])


def _pool(step: _Pool, x: Float32[Array, "n H W c"]) -> Float32[Array, "n h w c"]:
    """Down, then across, by slices: a quarter of the time of XLA's windows on a CPU."""
    height, width = x.shape[1:3]
    join, outside = (lax.max, -jnp.inf) if step.kind == "max" else (lax.add, 0.0)
    if step.padding == "SAME":
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=outside)
    for axis in (1, 2):
        last = x.shape[axis] - 2
        first, second, third = (
            lax.slice_in_dim(x, tap, last + tap, step.stride, axis=axis) for tap in range(3)
        )
        x = join(join(first, second), third)
    return x if step.kind == "max" else x / _counts(height, width)


def _counts(height: int, width: int) -> np.ndarray:
    """(1, height, width, 1) float32: pixels of the image in the 3x3 window around each."""
    window = np.ones(3, np.float32)
    rows = np.convolve(np.ones(height, np.float32), window, "same")
    columns = np.convolve(np.ones(width, np.float32), window, "same")
    return np.outer(rows, columns)[None, :, :, None]


def convert(tensors: Mapping[str, np.ndarray]) -> Params:
    """Parameters for `network` from the tensors of `read_inception`.

    Batch norms become one scale and one shift (computed in float64). Of `fc` the bias is left out:
    the Inception Score of TensorFlow's evaluators multiplies by the weights alone. Where there is
    no `fc` its place is empty, (2048, 0).
    """
    last_layer = tensors.get("fc.weight", np.zeros((0, DIM), np.float32))
    params: Params = {"fc": jnp.asarray(last_layer.T, jnp.float32)}
    names = [key.removesuffix(".conv.weight") for key in tensors if key.endswith(".conv.weight")]
    for name in names:
        params[name] = _conv_params(name, tensors)
    return params


def _conv_params(name: str, tensors: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    weight, bias, mean, variance = (
        tensors[f"{name}.bn.{part}"].astype(np.float64)
        for part in ("weight", "bias", "running_mean", "running_var")
    )
    scale = weight / np.sqrt(variance + EPSILON)
    return {
        "kernel": jnp.asarray(tensors[f"{name}.conv.weight"].transpose(2, 3, 1, 0), jnp.float32),
        "scale": jnp.asarray(scale.reshape(1, 1, 1, -1), jnp.float32),
        "shift": jnp.asarray((bias - mean * scale).reshape(1, 1, 1, -1), jnp.float32),
    }


@partial(jax.jit, static_argnames="prepare")
def _apply(
    params: Params, images: Num[Array, "n H W 3"], prepare: str
) -> tuple[Float32[Array, "n d"], Float32[Array, "n k"], Float32[Array, "n s"]]:
    return network(params, PREPARATIONS[prepare].device(images, INPUT_SIZE))


@dataclass(frozen=True)
class InceptionExtractor:
    """The loaded network, ready to be called on images."""

    digest: str  # SHA-256 (hex) of the tensors that features depend on
    prepare: str  # a name of `PREPARATIONS`
    batch: int
    params: Params = field(repr=False)
    name: str = "inception-2015-12-05"
    dim: int = DIM
    spatial_dim: int = SPATIAL_DIM
    class_names: tuple[str, ...] = ()  # the file does not name its 1008
    last_layer: str | None = None  # see `Extractor`

    def __call__(self, images: NDArray[np.uint8]) -> Outputs:
        """Features, spatial features, and logits without bias, as the Inception Score wants.

        Args:
            images: (n, H, W, 3) uint8, any size.

        Raises:
            ValueError: images of another type or shape.
        """
        prepared = PREPARATIONS[self.prepare].host

        def apply(batch: NDArray[np.uint8]) -> tuple[jax.Array, ...]:
            return _apply(self.params, jnp.asarray(prepared(batch, INPUT_SIZE)), self.prepare)

        return in_batches(apply, images, self.batch)


def load_inception(
    path: Path, prepare: str, expected: str | None = FEATURES_SHA256, batch: int | None = None
) -> InceptionExtractor:
    """Load the network from a local file, as `find_inception` finds it.

    Args:
        path: the weight file, in any of the layouts of `read_inception`.
        prepare: a name of `evaluation.extractors.resize.PREPARATIONS`.
        expected: SHA-256 of the tensors or of the file in hex, or its first digits; None takes any
            weights.
        batch: images computed at once, of which two batches run side by side; by default 8 on CPU
            and 128 elsewhere.

    Raises:
        UserError: no such file or preparation, another checksum, or another layout.
    """
    if prepare not in PREPARATIONS:
        raise UserError(f"unknown preparation {prepare!r}; known are {', '.join(PREPARATIONS)}")
    weights = read_inception(path, layout(), expected)
    return InceptionExtractor(
        digest=weights.digest,
        prepare=prepare,
        batch=batch or (8 if jax.default_backend() == "cpu" else 128),
        params=convert(weights.tensors),
        last_layer=weights.last_layer,
    )
