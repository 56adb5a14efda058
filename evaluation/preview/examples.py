"""A few records of a dataset, to see what a network makes of them."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.dataset.finished import LatentDataset
from schemas.errors import UserError
from schemas.layout import Layout
from schemas.manifest import Manifest
from schemas.pixels import from_uint8
from schemas.record import Record
from schemas.run import Run

MOST = 8  # records
SEARCHED = 2048  # records that are read to find them


@dataclass(frozen=True)
class Examples:
    """`latents` (n, h, w, c) float32 in the model's scale, `labels` (n,) int32."""

    latents: NDArray[np.float32]
    labels: NDArray[np.int32]


def _raw_latent(record: Record, manifest: Manifest) -> NDArray[Any]:
    return manifest.stored_normalization().undo(record.tensors["latent"])


# What a record holds, as (h, w, c) that the run's normalisation brings to the model's scale.
_RAW: dict[Layout, Callable[[Record, Manifest], NDArray[Any]]] = {
    Layout.MOMENTS: lambda record, manifest: record.tensors["mean"],
    Layout.IMAGE: lambda record, manifest: from_uint8(record.tensors["image"]),
    Layout.LATENT: _raw_latent,
}


def read_examples(directory: Path, run: Run) -> Examples:
    """The first records of each of the first classes, at most 8 in all, by class; of moments the
    mean.

    Raises:
        UserError: not a finished dataset or not the run's, or a damaged shard.
    """
    dataset = LatentDataset(directory)
    manifest = dataset.manifest
    if manifest.digest() != run.dataset.digest:
        raise UserError(
            f"{directory}: not the dataset of the run (digest {run.dataset.digest[:8]}); give that "
            "one"
        )
    records = pick(dataset.records(stop=min(len(dataset), SEARCHED)), len(manifest.classes))
    raw = np.stack([_RAW[manifest.layout](record, manifest) for record in records])
    labels = np.array([record.label for record in records], np.int32)
    return Examples(run.normalization.apply(raw), labels)


def pick(records: Iterable[Record], classes: int) -> list[Record]:
    """As many records of each of the first classes as fit, by class; others stand in for those that
    are not found.
    """
    shown = min(classes, MOST)
    each = MOST // shown
    chosen: list[Record] = []
    others: list[Record] = []
    for record in records:
        wanted = record.label < shown and sum(one.label == record.label for one in chosen) < each
        if wanted:
            chosen.append(record)
        elif len(others) < MOST:
            others.append(record)
        if len(chosen) == shown * each:
            break
    else:
        chosen += others[: MOST - len(chosen)]
    return sorted(chosen, key=lambda record: record.label)
