"""CIFAR-10's latents without Beam and without Grain: decoded, cropped and encoded by the functions
of `preprocess`.
"""

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.gpu_parts.inputs import CIFAR, TAEF2, find, read_images
from benchmarks.gpu_parts.part import Context
from pipelines.encoders.describe import default_dtype, describe_vae
from pipelines.encoders.weights import Vae, load_vae
from pipelines.images import CROPS, decode_image
from schemas.errors import UserError
from schemas.layout import Layout
from schemas.manifest import Normalization, VaeInfo
from schemas.pixels import to_uint8
from schemas.png import encode_png

CROP = "adm"
_BATCH = {"cpu": 16}
_GPU_BATCH = 500


@dataclass(frozen=True)
class Latents:
    """Encoded images, in the order of their names.

    Attributes:
        tensors: what the autoencoder gives, raw float16, (n, h, w, c) by name as in a record.
        labels: (n,) int32.
        classes: their names.
        vae: the autoencoder.
        resolution: of the images, in pixels.
        digest: of images, resolution and autoencoder.
    """

    tensors: dict[str, NDArray[np.float16]]
    labels: NDArray[np.int32]
    classes: tuple[str, ...]
    vae: VaeInfo
    resolution: int
    digest: str

    @property
    def shape(self) -> tuple[int, int, int]:
        """(h, w, c)."""
        height, width, channels = next(iter(self.tensors.values())).shape[1:]
        return height, width, channels

    @property
    def means(self) -> NDArray[np.float16]:
        """What decodes to the images."""
        return self.tensors["mean" if self.vae.layout == Layout.MOMENTS else "latent"]

    def normalization(self, kind: str) -> Normalization:
        """By `train.normalization`: the autoencoder's scale, or zero mean and unit deviation in
        each channel.
        """
        channels = self.shape[-1]
        if kind == "vae":
            return Normalization(
                offset=(self.vae.shift_factor,) * channels,
                scale=(self.vae.scaling_factor,) * channels,
            )
        values = self.means.astype(np.float64)
        variance = values.var(axis=(0, 1, 2))
        if self.vae.layout == Layout.MOMENTS:
            variance += np.exp(self.tensors["logvar"].astype(np.float64)).mean(axis=(0, 1, 2))
        scale = 1.0 / np.maximum(np.sqrt(variance), 1e-6)
        return Normalization(
            offset=tuple(values.mean(axis=(0, 1, 2)).tolist()), scale=tuple(scale.tolist())
        )


def encoder_name(context: Context) -> str:
    """What `load_vae` is asked for.

    Raises:
        UserError: TAEF2 is asked for and has not come.
    """
    name = context.options["encoder"]
    if name != TAEF2:
        return name
    path = find(context.work, TAEF2)
    if path is None:
        raise UserError("TAEF2 has not come; --take the folder of inputs that holds it")
    return str(path)


def read_pixels(
    context: Context, resolution: int
) -> tuple[NDArray[np.uint8], NDArray[np.int32], tuple[str, ...]]:
    """Images (n, resolution, resolution, 3), labels, classes; a few of each class where sizes are
    miniature.

    Raises:
        UserError: the images have not come.
    """
    path = find(context.work, CIFAR)
    if path is None:
        raise UserError("CIFAR-10 has not come; --take the folders of inputs that hold it")
    files, labels, classes = read_images(path)
    chosen = np.arange(len(labels))
    if context.tiny:
        chosen = chosen[:: max(1, len(labels) // 64)]
    # decoding takes a quarter of a minute
    cropped = context.work / "cifar" / f"pixels-{resolution}-{len(chosen)}.npy"
    if cropped.is_file():
        return np.load(cropped), labels[chosen], classes
    wanted = set(chosen.tolist())
    kept = [file.getvalue() for number, file in enumerate(files) if number in wanted]
    with ThreadPoolExecutor() as pool:
        pixels = np.stack(
            list(pool.map(lambda data: CROPS[CROP](decode_image(data), resolution), kept))
        )
    _keep(cropped, lambda stream: np.save(stream, pixels))
    return pixels, labels[chosen], classes


def held_out(count: int) -> NDArray[np.bool_]:
    """(count,): every tenth image by name, as `examples/split_tar.py --every 10` holds it out."""
    return np.arange(count) % 10 == 9


def encode(
    context: Context, resolution: int, pixels: NDArray[np.uint8], labels: Any, classes: Any
) -> Latents:
    """Latents of images; those of an earlier call, if they are of the same images and
    autoencoder.
    """
    name = encoder_name(context)
    info = describe_vae(name, dtype=default_dtype())
    assert info is not None
    told = f"{hashlib.sha256(pixels.tobytes()).hexdigest()} {info.model_dump_json()}"
    digest = hashlib.sha256(told.encode()).hexdigest()
    path = context.work / "cifar" / f"latents-{digest[:12]}.npz"
    if path.is_file():
        with np.load(path) as file:
            tensors = {key: file[key] for key in file.files}
    else:
        tensors = _encoded(load_vae(name, info.dtype), pixels, info)
        _keep(path, lambda stream: np.savez(stream, **tensors))
    return Latents(tensors, labels, classes, info, resolution, digest)


def _keep(path: Path, write: Callable[[IO[bytes]], None]) -> None:
    """For a later call; a part may be ended in the middle of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}")
    with draft.open("wb") as stream:
        write(stream)
    draft.replace(path)


def batch_size() -> int:
    """Images through the autoencoder at once."""
    import jax

    return _BATCH.get(jax.default_backend(), _GPU_BATCH)


def _encoded(vae: Vae, pixels: NDArray[np.uint8], info: VaeInfo) -> dict[str, Any]:
    names = ("mean", "logvar") if info.layout == Layout.MOMENTS else ("latent",)
    parts: list[list[NDArray[np.float16]]] = [[] for _ in names]
    size = batch_size()
    for begin in range(0, len(pixels), size):
        for kept, value in zip(
            parts, vae.encode_pixels(_padded(pixels[begin : begin + size], size)), strict=True
        ):
            kept.append(np.asarray(value)[: len(pixels) - begin].astype(np.float16))
    return {name: np.concatenate(kept) for name, kept in zip(names, parts, strict=True)}


def decode(vae: Vae, raw: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Images of raw latents (n, h, w, c), in batches of one size."""
    size, found = batch_size(), []
    for begin in range(0, len(raw), size):
        batch: Any = _padded(raw[begin : begin + size].astype(np.float32), size)
        found.append(to_uint8(np.asarray(vae.decode(batch)))[: len(raw) - begin])
    return np.concatenate(found)


def decoder(latents: Latents) -> Vae:
    """The autoencoder in float32, as `eval` decodes."""
    return load_vae(latents.vae.id, "float32")


def _padded(rows: NDArray[Any], size: int) -> Any:
    return np.pad(rows, ((0, size - len(rows)), *((0, 0),) * (rows.ndim - 1)))


def save_grid(images: NDArray[np.uint8], path: Path) -> None:
    """A PNG of the first 100 images, ten a row."""
    n = min(len(images), 100) // 10 * 10
    side = images.shape[1]
    rows = images[:n].reshape(n // 10, 10, side, side, 3).transpose(0, 2, 1, 3, 4)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_png(rows.reshape(n // 10 * side, 10 * side, 3)))
