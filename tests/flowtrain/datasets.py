"""A small synthetic latent dataset, written with the schemas alone, so that these tests need no
pipeline.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from schemas.layout import Layout, layout_tensors
from schemas.manifest import (
    ChannelStatistics,
    Counts,
    Manifest,
    ShardInfo,
    SourceInfo,
    VaeInfo,
    write_manifest,
)
from schemas.record import encode_record
from schemas.tfds_metadata import shard_name

CLASSES = ("circle", "square", "star")
OFFSET, SCALE = 0.25, 0.5


def record_tensors(
    index: int, shape: tuple[int, int, int], *, mirrored: bool = False, logvar: float = -4.0
) -> dict[str, np.ndarray]:
    """The posterior of record `index`: a mean that names the record, mirrored or not, and a small
    deviation.
    """
    rng = np.random.default_rng(index)
    mean = rng.standard_normal(shape).astype(np.float16)
    if mirrored:
        mean = mean[:, ::-1].copy()
    return {"mean": mean, "logvar": np.full(shape, logvar, np.float16)}


def write_dataset(
    directory: Path,
    *,
    records: int = 20,
    shards: int = 3,
    shape: tuple[int, int, int] = (4, 4, 4),
    flips: bool = False,
    factor: int = 4,
    logvar: Mapping[int, float] | None = None,
) -> Manifest:
    """Write a moments dataset of `records` records in `shards` shards (of unequal size) and return
    its manifest.

    `logvar` is that of some records, by index.
    """
    logvar = logvar or {}
    directory.mkdir(parents=True, exist_ok=True)
    specs = layout_tensors(Layout.MOMENTS, shape)
    cuts = np.linspace(0, records, shards + 1).round().astype(int)
    infos = []
    for split in ("train", "train_flip") if flips else ("train",):
        for number in range(shards):
            name = shard_name(split, number, shards)
            writer = ArrayRecordWriter(str(directory / name), "group_size:1")
            for index in range(cuts[number], cuts[number + 1]):
                tensors = record_tensors(
                    index, shape, mirrored=split != "train", logvar=logvar.get(index, -4.0)
                )
                writer.write(
                    encode_record(f"item-{index:04d}", index % len(CLASSES), tensors, specs)
                )
            writer.close()
            data = (directory / name).read_bytes()
            infos.append(
                ShardInfo(
                    name=name,
                    split=split,
                    records=int(cuts[number + 1] - cuts[number]),
                    bytes=len(data),
                    sha256=hashlib.sha256(data).hexdigest(),
                )
            )
    manifest = Manifest(
        layout=Layout.MOMENTS,
        split="train",
        flips=flips,
        resolution=shape[0] * factor,
        crop="none",
        tensors=specs,
        classes=CLASSES,
        source=SourceInfo(descriptor="synthetic", split="train", digest="0" * 64),
        vae=VaeInfo(
            id="none",
            sha256="0" * 64,
            config_sha256="0" * 64,
            factor=factor,
            latent_channels=shape[2],
            scaling_factor=SCALE,
            shift_factor=OFFSET,
        ),
        counts=Counts(source=records, written=records, rejected=0, duplicate=0),
        channels=ChannelStatistics(mean=(0.0,) * shape[2], std=(1.0,) * shape[2]),
        shards=tuple(infos),
        seed=0,
        command="test",
        versions={},
    )
    write_manifest(directory, manifest)
    return manifest
