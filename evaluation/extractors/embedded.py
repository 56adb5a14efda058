"""The embedded feature network: a small classifier of digits and CIFAR-10's classes.

Its pooled last layer gives features for a Fréchet distance that needs no download. That distance is
written FD(embedded); it is not an FID and not to be compared with one.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float32, UInt8

from evaluation.extractors.batches import in_batches
from evaluation.extractors.outputs import Outputs
from schemas.json_text import parse_object

ASSET_DIRECTORY = Path(__file__).parent.parent / "assets" / "embedded-features"
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
INPUT_SIZE = 32
BATCH = 256


@dataclass(frozen=True)
class FeatureConfig:
    """Sizes of the network: `widths` of its stages, the last of which is the number of features."""

    class_names: tuple[str, ...]
    widths: tuple[int, ...] = (32, 48, 64)
    groups: int = 8

    @classmethod
    def read(cls, file: Path) -> "FeatureConfig":
        values = parse_object(file.read_bytes())
        return cls(tuple(values["class_names"]), tuple(values["widths"]), values["groups"])


class _Stage(nnx.Module):
    """A convolution of stride 2, then a residual block: norm, ReLU, convolution, twice."""

    def __init__(self, inputs: int, outputs: int, groups: int, rngs: nnx.Rngs):
        def conv(width: int, stride: int = 1) -> nnx.Conv:
            # the same features on CPU and on hardware that would round
            highest = jax.lax.Precision.HIGHEST
            return nnx.Conv(
                width, outputs, (3, 3), strides=stride, padding=1, precision=highest, rngs=rngs
            )

        def norm() -> nnx.GroupNorm:
            return nnx.GroupNorm(outputs, num_groups=groups, use_fast_variance=False, rngs=rngs)

        self.down = conv(inputs, stride=2)
        self.norm1, self.conv1 = norm(), conv(outputs)
        self.norm2, self.conv2 = norm(), conv(outputs)

    def __call__(self, x: Float32[Array, "n H W c"]) -> Float32[Array, "n h w d"]:
        x = self.down(x)
        y = self.conv1(jax.nn.relu(self.norm1(x)))
        return x + self.conv2(jax.nn.relu(self.norm2(y)))


class FeatureNetwork(nnx.Module):
    """(n, 32, 32, 3) float32 in [-1, 1] -> features (n, widths[-1]) and logits (n, classes)."""

    def __init__(self, config: FeatureConfig, *, rngs: nnx.Rngs):
        widths = (3, *config.widths)
        self.stages = nnx.List([_Stage(a, b, config.groups, rngs) for a, b in pairwise(widths)])
        self.norm = nnx.GroupNorm(
            widths[-1], num_groups=config.groups, use_fast_variance=False, rngs=rngs
        )
        self.head = nnx.Linear(
            widths[-1], len(config.class_names), precision=jax.lax.Precision.HIGHEST, rngs=rngs
        )

    def __call__(
        self, x: Float32[Array, "n 32 32 3"]
    ) -> tuple[Float32[Array, "n d"], Float32[Array, "n k"]]:
        for stage in self.stages:
            x = stage(x)
        features = jax.nn.relu(self.norm(x)).mean(axis=(1, 2))
        return features, self.head(features)


def prepare(images: UInt8[Array, "n H W 3"]) -> Float32[Array, "n 32 32 3"]:
    """uint8 (n, H, W, 3) -> float32 (n, 32, 32, 3) in [-1, 1].

    Other sizes are stretched to 32x32 by `jax.image.resize` with its cubic kernel (Keys, a = -0.5),
    antialiased, and clipped to the range; 32x32 passes untouched.
    """
    x = images.astype(jnp.float32) / 127.5 - 1
    if images.shape[1:3] == (INPUT_SIZE, INPUT_SIZE):
        return x
    shape = (images.shape[0], INPUT_SIZE, INPUT_SIZE, 3)
    return jnp.clip(jax.image.resize(x, shape, method="cubic", antialias=True), -1, 1)


@dataclass(frozen=True)
class EmbeddedExtractor:
    """The loaded network, ready to be called on images."""

    dim: int
    digest: str  # SHA-256 (hex) of the weight file
    class_names: tuple[str, ...]
    apply: Callable[[Any], tuple[jax.Array, jax.Array]] = field(repr=False)
    name: str = "embedded"
    spatial_dim: int = 0
    last_layer: str | None = ""

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def __call__(self, images: np.ndarray) -> Outputs:
        """Features and logits of images.

        Computed in batches of 256, the last one padded, so one compilation serves an image size and
        a result does not depend on how callers cut their batches.

        Args:
            images: (n, H, W, 3) uint8; see `prepare` for sizes other than 32x32.

        Returns:
            features (n, dim) float32 and logits (n, num_classes) float32.

        Raises:
            ValueError: images of another type or shape.
        """
        return in_batches(self.apply, images, BATCH)


def load_embedded(directory: Path = ASSET_DIRECTORY) -> EmbeddedExtractor:
    """The shipped network, or one of its kind in `directory`; loaded once a process."""
    return _load(directory)


@cache
def _load(directory: Path) -> EmbeddedExtractor:
    from safetensors.numpy import load

    config = FeatureConfig.read(directory / CONFIG_FILE)
    data = (directory / WEIGHTS_FILE).read_bytes()
    tensors = load(data)
    graphdef, params = nnx.split(nnx.eval_shape(lambda: FeatureNetwork(config, rngs=nnx.Rngs(0))))
    abstract = nnx.to_pure_dict(params)
    names = _names(abstract)
    if set(tensors) != set(names):
        raise ValueError(f"{directory / WEIGHTS_FILE} and its {CONFIG_FILE} do not belong together")
    leaves = [jnp.asarray(tensors[name]) for name in names]
    nnx.replace_by_pure_dict(params, jax.tree.unflatten(jax.tree.structure(abstract), leaves))

    @jax.jit
    def apply(params: Any, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        return nnx.merge(graphdef, params)(prepare(images))

    return EmbeddedExtractor(
        dim=config.widths[-1],
        digest=hashlib.sha256(data).hexdigest(),
        class_names=config.class_names,
        apply=lambda images: apply(params, images),
    )


def save_embedded(model: FeatureNetwork, config: FeatureConfig, directory: Path) -> None:
    """Write `config.json` and weights named after attributes, for `load_embedded`."""
    from safetensors.numpy import save_file

    values = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    leaves = [np.asarray(leaf, np.float32) for leaf in jax.tree.leaves(values)]
    directory.mkdir(parents=True, exist_ok=True)
    save_file(dict(zip(_names(values), leaves, strict=True)), directory / WEIGHTS_FILE)
    (directory / CONFIG_FILE).write_text(
        json.dumps(asdict(config), indent=2) + "\n", encoding="utf-8"
    )


def _names(values: dict[str, Any]) -> list[str]:
    """Dotted names of nested dicts' leaves, in their order: 'stages.0.conv1.kernel'."""
    paths = [path for path, _ in jax.tree_util.tree_flatten_with_path(values)[0]]
    return [".".join(str(entry.key) for entry in path) for path in paths]
