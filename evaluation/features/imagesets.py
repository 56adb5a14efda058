"""Sets of images, in order, uint8: a latent dataset, a source, or an ADM batch.

An `ImageSet` is a small picklable value; workers open what it names, once a process.
"""

import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from pipelines.encoders.decode import decode_records
from schemas.arrays import load_arrays
from schemas.errors import UserError, reason_of
from schemas.layout import Layout
from schemas.manifest import MANIFEST_NAME

if TYPE_CHECKING:
    from pipelines.dataset.finished import LatentDataset
    from pipelines.sources import Item, Picture, Source

DECODED = "decoded latents"  # as a reference they hide what the VAE does to images
_UNNAMED = "all"


class Batch(NamedTuple):
    """uint8 images (n, H, W, 3), int64 labels (n,), and how many more could not be read."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    rejected: int = 0


class ImageSet(Protocol):
    """`size` images of `resolution` pixels a side; labels index `classes`."""

    @property
    def size(self) -> int: ...
    @property
    def resolution(self) -> int: ...
    @property
    def classes(self) -> tuple[str, ...]: ...

    def facts(self) -> dict[str, Any]:
        """What identifies the images, for JSON; nothing that depends on where they lie."""
        ...

    def state(self) -> str:
        """What else differs, here and now, when they were replaced by others of the same facts."""
        ...

    def read(self, start: int, stop: int) -> Batch:
        """The images [start, stop), decoded."""
        ...


@dataclass(frozen=True)
class DatasetImages:
    """The first `size` records of a split, decoded: means, samples or stored pixels."""

    directory: str
    split: str
    size: int
    resolution: int
    classes: tuple[str, ...]
    digest: str
    decoded: bool

    def facts(self) -> dict[str, Any]:
        kind = DECODED if self.decoded else "dataset"
        return {"kind": kind, "split": self.split, "digest": self.digest, "num": self.size}

    def state(self) -> str:
        return ""  # the digest is of their bytes

    def read(self, start: int, stop: int) -> Batch:
        dataset, digest = _open_dataset(self.directory)
        if digest != self.digest:
            raise UserError(
                f"{self.directory}: the dataset changed while it was read; repeat the command"
            )
        records = list(dataset.records(self.split, start, stop))
        return Batch(
            decode_records(dataset.manifest, records),
            np.array([record.label for record in records], np.int64),
        )


def dataset_images(
    directory: Path, split: str | None = None, num: int | None = None
) -> DatasetImages:
    """Describe the images of a dataset.

    Raises:
        UserError: no finished dataset, no such split, fewer than `num` records.
    """
    dataset, digest = _open_dataset(str(directory))
    manifest = dataset.manifest
    split = split or manifest.split
    if split not in manifest.splits:
        raise UserError(f"{directory}: no split {split!r}; it has {' and '.join(manifest.splits)}")
    records = sum(shard.records for shard in manifest.split_shards(split))
    return DatasetImages(
        directory=str(directory),
        split=split,
        size=_at_most(records, num, str(directory)),
        resolution=manifest.resolution,
        classes=manifest.classes,
        digest=digest,
        decoded=manifest.layout is not Layout.IMAGE and manifest.vae is not None,
    )


@dataclass(frozen=True)
class SourceImages:
    """`size` items of a source, evenly spaced by key, cropped as `preprocess` does.

    Keys are sorted by class, so the first ones would be those of a few classes.
    """

    descriptor: str
    split: str
    size: int
    resolution: int
    crop: str
    classes: tuple[str, ...]
    digest: str
    changed: str  # digest of their times of change

    def facts(self) -> dict[str, Any]:
        source = {"descriptor": self.descriptor, "split": self.split, "digest": self.digest}
        return {"kind": "source", **source, "num": self.size, "crop": self.crop}

    def state(self) -> str:
        return self.changed

    def read(self, start: int, stop: int) -> Batch:
        source, items, _, _ = _source(self.descriptor, self.split)
        images, labels = [], []
        for item in (items[i * len(items) // self.size] for i in range(start, stop)):
            picture = read_item(source, item, self.crop, self.resolution)
            if picture is not None:
                images.append(picture.pixels)
                labels.append(picture.label)
        empty = np.zeros((0, self.resolution, self.resolution, 3), np.uint8)
        pixels = np.stack(images) if images else empty
        return Batch(pixels, np.array(labels, np.int64), rejected=stop - start - len(labels))


def source_images(
    descriptor: str, split: str, resolution: int, crop: str, num: int | None = None
) -> SourceImages:
    """Describe the images of a source.

    Raises:
        UserError: no such source, nothing in it, fewer than `num` items, or two images of one key.
    """
    source, items, digest, state = _source(descriptor, split)
    return SourceImages(
        descriptor=source.descriptor,
        split=split,
        size=_at_most(len(items), num, descriptor),
        resolution=resolution,
        crop=crop,
        classes=source.classes,
        digest=digest,
        changed=state,
    )


def read_item(source: "Source", item: "Item", crop: str, resolution: int) -> "Picture | None":
    """An image (resolution, resolution, 3) and its label; None when it is unusable.

    Raises:
        UserError: its bytes cannot be had, which says nothing about the image.
    """
    from pipelines.images import CROPS, ImageError

    try:
        picture = source.read(item)
        return picture._replace(pixels=CROPS[crop](picture.pixels, resolution))
    except ImageError:
        return None
    except OSError as error:
        raise UserError(
            f"cannot read {item.key} of {source.descriptor} ({reason_of(error)})"
        ) from error


@dataclass(frozen=True)
class BatchImages:
    """An .npz of samples in ADM's layout: `arr_0` uint8 (n, H, W, 3)."""

    path: str
    size: int
    resolution: int
    digest: str
    classes: tuple[str, ...] = (_UNNAMED,)

    def facts(self) -> dict[str, Any]:
        return {"kind": "batch", "digest": self.digest, "num": self.size}

    def state(self) -> str:
        return ""  # the digest is of their bytes

    def read(self, start: int, stop: int) -> Batch:
        return Batch(_batch(self.path)[start:stop], np.zeros(stop - start, np.int64))


def batch_images(path: Path, num: int | None = None) -> BatchImages:
    """Describe an ADM batch.

    Raises:
        UserError: not a readable .npz, or `arr_0` is not uint8 (n, H, H, 3).
    """
    images = _batch(str(path))
    digest = hashlib.sha256(np.ascontiguousarray(images).data).hexdigest()
    return BatchImages(str(path), _at_most(len(images), num, str(path)), images.shape[1], digest)


@functools.lru_cache(maxsize=4)
def _batch(path: str) -> NDArray[np.uint8]:
    try:
        found = load_arrays(Path(path), ("arr_0",))
    except ValueError as error:
        raise UserError(
            f"{path}: not a readable .npz of ADM's sample batches ({error}); give one, or a "
            "folder of images"
        ) from None
    if "arr_0" not in found:
        raise UserError(f"{path}: an .npz without arr_0, which ADM's sample batches have; give one")
    images = found["arr_0"]
    square = images.ndim == 4 and images.size and images.shape[1] == images.shape[2]
    if images.dtype != np.uint8 or not square or images.shape[3] != 3:
        raise UserError(
            f"{path}: arr_0 is {images.dtype}{images.shape}; samples must be uint8 (n, H, H, 3)"
        )
    return images


def _open_dataset(directory: str) -> tuple["LatentDataset", str]:
    """A dataset and its digest. Opened again only when its manifest is another file than before."""
    try:
        status = Path(directory, MANIFEST_NAME).stat()
        version = (status.st_ino, status.st_size, status.st_mtime_ns)
    except OSError:  # opening it says what is wrong
        version = None
    return _read_dataset(directory, version)


@functools.lru_cache(maxsize=4)
def _read_dataset(
    directory: str, version: tuple[int, int, int] | None
) -> tuple["LatentDataset", str]:
    from pipelines.dataset.finished import LatentDataset

    dataset = LatentDataset(Path(directory))
    return dataset, dataset.manifest.digest()


@functools.lru_cache(maxsize=4)
def _source(descriptor: str, split: str) -> tuple["Source", list["Item"], str, str]:
    """A source, its items by key (the same everywhere, each image once), and `Index`'s two digests.

    The index itself goes: it holds the items a second time.
    """
    from pipelines.preprocess.index import index_of
    from pipelines.sources import open_source

    source = open_source(descriptor, split)
    try:
        index = index_of(source, seed=0)
    except OSError as error:
        raise UserError(
            f"{source.descriptor}: cannot be listed ({reason_of(error)}); mend that and repeat the "
            "command"
        ) from error
    return source, sorted(index.items(), key=lambda item: item.key), index.digest, index.state


def _at_most(available: int, num: int | None, where: str) -> int:
    if num is not None and num > available:
        raise UserError(f"{where}: holds {available} images, not {num}; ask for no more")
    return available if num is None else num
