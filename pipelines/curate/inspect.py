"""`data inspect`: what a dataset is, how its classes are filled, and what its records look like."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.dataset.anywhere import StoredDataset
from pipelines.dataset.card import facts, pretty_name
from pipelines.encoders.decode import decode_records, decoding_vae
from schemas.bars import bar
from schemas.layout import Layout
from schemas.text import aligned

BAR = 40  # characters of the longest bar of the histogram
LISTED = 20  # classes that are all shown
FULLEST, NARROW_BAR = 5, 20  # shown of more classes than that, and how


@dataclass(frozen=True)
class Inspection:
    """A dataset and the number of its records in each class."""

    dataset: StoredDataset
    histogram: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        """For programs: the manifest's own names and values, without the list of shards."""
        manifest = self.dataset.manifest
        content = manifest.model_dump(mode="json", exclude={"shards", "files", "sealed"})
        totals = {
            "shards": len(manifest.shards),
            "bytes": sum(shard.bytes for shard in manifest.shards),
        }
        histogram = dict(zip(manifest.classes, self.histogram, strict=True))
        return {
            "root": self.dataset.root,
            "digest": manifest.digest(),
            **content,
            **totals,
            "histogram": histogram,
        }

    def to_text(self) -> str:
        """For people: a heading, one fact a line, then the histogram."""
        manifest = self.dataset.manifest
        rows = [*facts(manifest), ("digest", manifest.digest())]
        lines = [pretty_name(manifest), "", *aligned(rows)]
        if len(manifest.classes) > 1:
            lines += ["", *self._bars()]
        return "\n".join(lines)

    def _bars(self) -> list[str]:
        """Counts by class in order of labels; of many, the fullest and the sum of the others."""
        counts, names = np.array(self.histogram), self.dataset.manifest.classes
        top, many = max(int(counts.max()), 1), len(names) > LISTED
        shown = np.argsort(-counts, kind="stable")[:FULLEST] if many else np.arange(len(names))
        longest = min(NARROW_BAR, top) if many else BAR
        width, digits = max(len(names[i]) for i in shown), len(f"{top:,}")
        bars = ["#" * (longest * int(counts[i]) // top) for i in shown]
        lines = [
            f"{names[i]:<{width}}  {counts[i]:>{digits},}  {bar}".rstrip()
            for i, bar in zip(shown, bars, strict=True)
        ]
        if many:
            others = np.delete(counts, shown)
            lines.append(
                f"and {len(others):,} more classes of {others.min():,} to {others.max():,} records "
                f"({others.mean():.1f} on average)"
            )
        return lines


def inspect(dataset: StoredDataset, progress: bool | None = False) -> Inspection:
    """Count the records of each class, which reads the main split through.

    Raises:
        UserError: a shard cannot be read.
    """
    manifest = dataset.manifest
    counts = np.zeros(len(manifest.classes), np.int64)
    disable = None if progress is None else not progress
    with bar(
        total=manifest.counts.written, unit="record", desc="count", disable=disable
    ) as counted:
        for shard in manifest.split_shards(manifest.split):
            labels = [record.label for record in dataset.records(shard)]
            counts += np.bincount(labels, minlength=len(counts))[: len(counts)] if labels else 0
            counted.update(len(labels))
    return Inspection(dataset, tuple(counts.tolist()))


def check_drawable(dataset: StoredDataset) -> None:
    """Refuse records that cannot be drawn, before any work; loads a VAE where one is needed.

    Raises:
        UserError: the VAE cannot be had, or is another one.
    """
    manifest = dataset.manifest
    if manifest.vae is not None and manifest.layout is not Layout.IMAGE:
        decoding_vae(manifest.vae)


def grid_rows(dataset: StoredDataset, num: int, seed: int) -> list[NDArray[np.uint8]]:
    """Pictures of `num` records drawn without replacement, in rows of a grid that is about square.

    Latents are decoded with the dataset's own VAE: the posterior mean, or the samples brought back
    from the model's scale.

    Raises:
        UserError: a shard cannot be read, or the VAE cannot be had.
    """
    total = dataset.manifest.counts.written
    rows = np.random.default_rng(seed).choice(total, min(num, total), replace=False)
    images = decode_records(
        dataset.manifest, dataset.at(dataset.manifest.split, np.sort(rows).tolist())
    )
    columns = math.ceil(math.sqrt(len(images)))
    return [images[start : start + columns] for start in range(0, len(images), columns)]
