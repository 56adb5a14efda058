"""A small synthetic latent dataset, written with the schemas alone, so that these tests need no
pipeline.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from schemas.layout import Layout
from schemas.manifest import Manifest, SourceInfo, VaeInfo
from tests.datasets import Row, build_dataset, in_shards

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

    def row(index: int, mirrored: bool) -> Row:
        spread = logvar.get(index, -4.0)
        tensors = record_tensors(index, shape, mirrored=mirrored, logvar=spread)
        return Row(f"item-{index:04d}", index % len(CLASSES), tensors)

    splits = {"train": False, "train_flip": True} if flips else {"train": False}
    return build_dataset(
        directory,
        Layout.MOMENTS,
        shape,
        {
            split: in_shards([row(index, mirrored) for index in range(records)], shards)
            for split, mirrored in splits.items()
        },
        **facts(shape, factor),
    )


def facts(shape: tuple[int, int, int], factor: int = 4) -> dict[str, Any]:
    """Fields of the manifest of a synthetic dataset of that shape."""
    vae = VaeInfo(
        id="none",
        sha256="0" * 64,
        config_sha256="0" * 64,
        factor=factor,
        latent_channels=shape[2],
        scaling_factor=SCALE,
        shift_factor=OFFSET,
    )
    return {
        "resolution": shape[0] * factor,
        "classes": CLASSES,
        "source": SourceInfo(descriptor="synthetic", split="train", digest="0" * 64),
        "vae": vae,
    }
