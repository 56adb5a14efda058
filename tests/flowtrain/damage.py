"""Ways to break a dataset, and one of pixels to break."""

from pathlib import Path

import numpy as np

from schemas.layout import Layout
from schemas.manifest import Manifest
from tests.datasets import Row, build_dataset, in_shards
from tests.flowtrain.datasets import facts


def shard_paths(dataset: Path) -> list[Path]:
    """The shards of all splits, in order of their names."""
    return sorted(dataset.glob("*.array_record-*"))


def flip_byte(dataset: Path, index: int, *, mirrored: bool = False) -> Path:
    """Change one byte within a record of `write_dataset`, which is found by its key; the shard it
    is in.
    """
    for path in shard_paths(dataset):
        data = bytearray(path.read_bytes())
        place = data.find(b"item-%04d" % index)
        if place >= 0 and ("_flip" in path.name) == mirrored:
            data[place] ^= 1
            path.write_bytes(bytes(data))
            return path
    raise AssertionError(f"no record {index}")


def write_pixels(
    directory: Path, images: np.ndarray, mirrored: np.ndarray | None = None
) -> Manifest:
    """A dataset of uint8 images (n, h, w, 3), in two shards a split; labels count up to 3."""
    splits = {"train": images}
    if mirrored is not None:
        splits["train_flip"] = mirrored
    rows = {
        split: [Row(str(index), index % 3, {"image": image}) for index, image in enumerate(pixels)]
        for split, pixels in splits.items()
    }
    height, width, channels = images.shape[1:]
    shape = (height, width, channels)
    shards = {split: in_shards(each, 2) for split, each in rows.items()}
    return build_dataset(directory, Layout.IMAGE, shape, shards, **facts(shape))
