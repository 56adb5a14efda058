"""The one builder of finished datasets, for tests and benchmarks: rows in shards, a manifest.

Written with the schemas alone, so that tests of training need no pipeline.
"""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from numpy.typing import NDArray

from schemas.files import sha256_file
from schemas.layout import Layout, TensorSpec, layout_tensors
from schemas.manifest import (
    ChannelStatistics,
    Counts,
    Manifest,
    ShardInfo,
    SourceInfo,
    write_manifest,
)
from schemas.record import encode_record
from schemas.tfds_metadata import shard_name

OPTIONS = "group_size:1"  # one record a group, as `preprocess` writes them


class Row(NamedTuple):
    """One record to be written."""

    key: str
    label: int
    tensors: Mapping[str, NDArray[Any]]


# Writes what makes a directory of shards a dataset; the manifest as it was written.
Finish = Callable[[Path, Manifest], Manifest]


def manifest_alone(directory: Path, manifest: Manifest) -> Manifest:
    """Finish a dataset with its manifest and nothing that TensorFlow Datasets needs."""
    write_manifest(directory, manifest)
    return manifest


def write_rows(path: Path, rows: Iterable[Row], specs: Mapping[str, TensorSpec]) -> int:
    """Write one shard; the number of its rows."""
    count = 0
    writer = ArrayRecordWriter(str(path), OPTIONS)
    for row in rows:
        writer.write(encode_record(row.key, row.label, row.tensors, specs))
        count += 1
    writer.close()
    return count


def build_dataset(
    directory: Path,
    layout: Layout,
    shape: tuple[int, int, int],
    splits: Mapping[str, Sequence[Iterable[Row]]],
    *,
    finish: Finish = manifest_alone,
    **fields: Any,
) -> Manifest:
    """Write a dataset and return its manifest.

    Args:
        directory: where; made if it is not there.
        layout: which tensors a row has.
        shape: (height, width, channels) of each of them.
        splits: by name, the rows of each shard; the main split first, its mirror second.
        finish: writes the files beside the shards, the manifest last.
        fields: of the manifest, in place of the defaults below.
    """
    directory.mkdir(parents=True, exist_ok=True)
    specs = layout_tensors(layout, shape)
    shards: list[ShardInfo] = []
    for split, parts in splits.items():
        for number, rows in enumerate(parts):
            path = directory / shard_name(split, number, len(parts))
            count = write_rows(path, rows, specs)
            shards.append(
                ShardInfo(
                    name=path.name,
                    split=split,
                    records=count,
                    bytes=path.stat().st_size,
                    sha256=sha256_file(path),
                )
            )
    main = next(iter(splits))
    written = sum(shard.records for shard in shards if shard.split == main)
    defaults: dict[str, Any] = {
        "layout": layout,
        "split": main,
        "flips": len(splits) == 2,
        "crop": "none",
        "tensors": specs,
        "source": SourceInfo(descriptor="none", split=main, digest="0" * 64),
        "counts": Counts(source=written, written=written, rejected=0, duplicate=0),
        "channels": ChannelStatistics(mean=(0.0,) * shape[2], std=(1.0,) * shape[2]),
        "shards": tuple(shards),
        "seed": 0,
        "command": "test",
        "versions": {},
    }
    return finish(directory, Manifest.model_validate({**defaults, **fields}))


def in_shards(rows: Sequence[Row], shards: int) -> list[Sequence[Row]]:
    """Rows in `shards` runs of about the same length."""
    cuts = np.linspace(0, len(rows), shards + 1).round().astype(int).tolist()
    return [rows[start:stop] for start, stop in itertools.pairwise(cuts)]
