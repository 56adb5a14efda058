"""Ways to break a dataset, and one of pixels to break."""

from pathlib import Path

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from schemas.files import sha256_file
from schemas.layout import Layout, layout_tensors
from schemas.manifest import Manifest, write_manifest
from schemas.record import encode_record
from tests.flowtrain.datasets import write_dataset


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
    splits = [images] if mirrored is None else [images, mirrored]
    flips = len(splits) == 2
    manifest = write_dataset(
        directory, records=len(images), shards=2, shape=images.shape[1:], flips=flips
    )
    specs = layout_tensors(Layout.IMAGE, images.shape[1:])
    shards = []
    for split, pixels in zip(manifest.splits, splits, strict=True):
        first = 0
        for shard in manifest.split_shards(split):
            path = directory / shard.name
            writer = ArrayRecordWriter(str(path), "group_size:1")
            for index in range(first, first + shard.records):
                writer.write(encode_record(str(index), index % 3, {"image": pixels[index]}, specs))
            writer.close()
            first += shard.records
            shards.append(
                shard.model_copy(update={"bytes": path.stat().st_size, "sha256": sha256_file(path)})
            )
    changes = {"layout": Layout.IMAGE, "tensors": specs, "shards": tuple(shards)}
    manifest = manifest.model_copy(update=changes)
    write_manifest(directory, manifest)
    return manifest
