"""Images a second through the feature networks of `eval`, and through PyTorch's with the same
weights.

Weights are random, in the layouts of the published files: rates do not depend on them. Both are
computed in float32, as in an evaluation; PyTorch is also timed as it comes, with TensorFloat-32
where there is such a thing.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.gpu_parts.part import Context
from benchmarks.sides import Side, SideError
from benchmarks.torch_dit import _torch_device

TOLERANCE = 1e-3  # of features in float32, of the largest; TensorFloat-32 is off by as much
_ROUNDS = 2


def inception_tensors(seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """He-scaled kernels and positive variances, so that activations neither die nor grow."""
    from evaluation.extractors.inception import layout

    rng, tensors = np.random.default_rng(seed), {}
    for name, shape in layout().items():
        if name.endswith(("conv.weight", "fc.weight")):
            values = rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
        elif name.endswith(("bn.weight", "running_var")):
            values = rng.uniform(0.6, 1.4, shape)
        else:
            values = rng.uniform(-0.3, 0.3, shape)
        tensors[name] = values.astype(np.float32)
    return tensors


def dinov2_tensors(config: Any) -> dict[str, NDArray[np.float32]]:
    """Weights of variance 1 / inputs; norms and layer scales near 1."""
    from evaluation.extractors.dinov2_weights import _expected_shapes

    rng, tensors = np.random.default_rng(0), {}
    for name, shape in _expected_shapes(config).items():
        if name.endswith("lambda1") or ("norm" in name and name.endswith("weight")):
            values = rng.uniform(0.5, 1.5, shape).astype(np.float32)
        else:
            fan_in = int(np.prod(shape[1:])) if name.endswith("weight") else 10
            values = rng.standard_normal(shape, np.float32) * np.float32(fan_in**-0.5)
        tensors[name] = values
    return tensors


def dinov2_config(tiny: bool) -> Any:
    """ViT-L/14 of 518 pixels, or two blocks of 128 channels."""
    from evaluation.extractors.dinov2_weights import DinoV2Config

    return DinoV2Config(128, 2, 512, 14, 37) if tiny else DinoV2Config(1024, 24, 4096, 14, 37)


def draw_images(count: int, pixels: int) -> NDArray[np.uint8]:
    """(count, pixels, pixels, 3) of noise."""
    return np.random.default_rng(1).integers(0, 256, (count, pixels, pixels, 3), np.uint8)


class Ours:
    """The extractors of `evaluation`."""

    label = "flowtrain"

    def prepare(self, name: str, tiny: bool, batch: int) -> list[str]:
        """Weights on the device; names of what can be timed, its platform last."""
        import jax

        loaders = {"inception": self._inception, "dinov2-l": self._dinov2}
        self.extract = loaders[name](tiny, batch)
        return [self.label, jax.default_backend()]

    def _inception(self, tiny: bool, batch: int) -> Callable[[Any], Any]:
        import jax.numpy as jnp

        from evaluation.extractors.inception import InceptionExtractor, _conv_params

        tensors = inception_tensors()
        names = [
            name.removesuffix(".conv.weight") for name in tensors if name.endswith(".conv.weight")
        ]
        params: dict[str, Any] = {name: _conv_params(name, tensors) for name in names}
        params["fc"] = jnp.asarray(tensors["fc.weight"].T)
        return InceptionExtractor("random", "tf1-bilinear", batch, params)

    def _dinov2(self, tiny: bool, batch: int) -> Callable[[Any], Any]:
        from evaluation.extractors.dinov2 import make_extractor

        config = dinov2_config(tiny)
        return make_extractor(config, dinov2_tensors(config), "random")

    def time(self, what: str, count: int, pixels: int) -> float:
        """Seconds from uint8 images to features, both NumPy."""
        images = draw_images(count, pixels)
        begin = time.perf_counter()
        self.extract(images)
        return time.perf_counter() - begin

    def features(self, what: str, count: int, pixels: int) -> NDArray[np.float32]:
        """Of the first images, to be compared."""
        return self.extract(draw_images(count, pixels)).features


class Torch:
    """The same networks in PyTorch, channels last, through `torch.compile`."""

    label = "torch.compile"

    def prepare(self, name: str, tiny: bool, batch: int) -> list[str]:
        """Weights on the device; names of what can be timed, its platform last."""
        import torch

        self.device, self.batch = _torch_device(), batch
        loaders = {"inception": self._inception, "dinov2-l": self._dinov2}
        self.network = torch.compile(loaders[name](tiny), dynamic=False)
        further = [f"{self.label}, TF32"] if self.device.type == "cuda" else []
        return [self.label, *further, self.device.type]

    def _inception(self, tiny: bool) -> Callable[[Any], Any]:
        from benchmarks.torch_inception import inception

        return inception(inception_tensors(), self.device)

    def _dinov2(self, tiny: bool) -> Callable[[Any], Any]:
        from benchmarks.torch_dinov2 import dinov2

        config = dinov2_config(tiny)
        return dinov2(config, dinov2_tensors(config), self.device)

    def features(self, what: str, count: int, pixels: int) -> NDArray[np.float32]:
        """Of the first images, to be compared."""
        import torch

        rounded = what.endswith("TF32")
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = rounded
        images = torch.from_numpy(draw_images(count, pixels))
        with torch.inference_mode():
            return (
                torch.cat([self.network(part.to(self.device)) for part in images.split(self.batch)])
                .cpu()
                .numpy()
            )

    def time(self, what: str, count: int, pixels: int) -> float:
        """Seconds from uint8 images to features, both NumPy."""
        begin = time.perf_counter()
        self.features(what, count, pixels)
        return time.perf_counter() - begin


@dataclass
class Found:
    """Of ours, for the peer's rows: images a second and features, by network; empty where ours
    failed.
    """

    rates: dict[str, float] = field(default_factory=dict)
    features: dict[str, NDArray[np.float32]] = field(default_factory=dict)


def run(context: Context) -> None:
    """Both of ours, then both of PyTorch's."""
    from evaluation.extractors.dinov2 import BATCH

    cases = {"inception": (2048, 256, 128), "dinov2-l": (512, 224, BATCH)}  # images, pixels, batch
    if context.tiny:
        cases = {"inception": (2, 32, 2), "dinov2-l": (BATCH, 224, BATCH)}
    found = Found()
    for kind in (Ours, Torch):
        for name, (count, pixels, batch) in cases.items():
            row = {
                "network": name,
                "images": count,
                "pixels": pixels,
                "batch": batch,
                "weights": "random",
            }
            _measure(
                partial(context.emit, **row),
                kind,
                (name, context.tiny, batch),
                (count, pixels),
                found,
            )


def _measure(
    emit: Callable[..., None],
    kind: type[Any],
    network: tuple[str, bool, int],
    images: tuple[int, int],
    found: Found,
) -> None:
    name, _, batch = network
    with Side(kind) as side:
        try:
            *runs, platform = side.ask("prepare", *network)
            for what in runs:
                features = side.ask("features", what, batch, images[1])
                side.ask("time", what, *images)
                seconds = min(side.ask("time", what, *images) for _ in range(_ROUNDS))
                rate = images[0] / seconds
                if kind is Ours:
                    found.rates[name], found.features[name] = rate, features
                our_rate = found.rates.get(name)
                ratio = None if our_rate is None else our_rate / rate
                differ = (
                    None if kind is Ours else _compare(what, features, found.features.get(name))
                )
                times = {"images_per_second": rate, "ours_over_this": ratio}
                emit(by=what, platform=platform, **times, differ=differ, remark="")
        except SideError as reason:
            emit(by=kind.label, remark=str(reason))


def _compare(
    what: str, features: NDArray[np.float32], ours: NDArray[np.float32] | None
) -> float | None:
    """Largest difference from our features; None where ours failed."""
    if ours is None:
        return None
    off = float(np.abs(features - ours).max() / np.abs(ours).max())
    if not off < TOLERANCE * (10 if what.endswith("TF32") else 1):
        raise SideError(f"features differ by {off:.1e} of the largest: not the same computation")
    return off
