"""A dataset as fixed-size rows: a record's tensors and label, one after another.

Row i is record i of the main split; the mirror images follow in the same order. Decoding the shards
costs most of the time that loading takes, and a row costs a copy.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader
from numpy.typing import NDArray

from flowtrain.records.reader import Index, check_range, check_shard_file
from schemas.columns import Columns, decode_columns
from schemas.errors import UserError, reason_of
from schemas.files import sha256_file
from schemas.layout import LABEL, TensorSpec
from schemas.manifest import REBUILD, Manifest, ShardInfo

Rows = NDArray[np.void]

_CHUNK = 256  # records that are decoded at once


def row_dtype(tensors: Mapping[str, TensorSpec]) -> np.dtype[np.void]:
    """A row's dtype: tensors as in the manifest, label int32, little-endian, no gaps."""
    fields: list[Any] = [
        (name, np.dtype(spec.dtype).newbyteorder("<"), spec.shape) for name, spec in tensors.items()
    ]
    return np.dtype([*fields, (LABEL, "<i4")])


def row_count(manifest: Manifest) -> int:
    """Records of all splits."""
    return manifest.counts.written * len(manifest.splits)


def cache_bytes(manifest: Manifest) -> int:
    """Bytes of all rows: what a cache on disk or in memory takes."""
    return row_count(manifest) * row_dtype(manifest.tensors).itemsize


def read_rows(
    directory: Path, manifest: Manifest, progress: Callable[[int], object]
) -> Iterator[Rows]:
    """All rows in order, in pieces, from shards that are compared with their checksums first.

    Args:
        directory: where the shards lie.
        manifest: of the dataset.
        progress: told the number of records of each piece.

    Raises:
        UserError: a shard is missing or damaged, or a record does not fit the manifest.
    """
    for split in manifest.splits:
        for shard in manifest.split_shards(split):
            _check_shard(directory / shard.name, shard)
            for rows in _shard_rows(directory / shard.name, shard, manifest):
                yield rows
                progress(len(rows))


def _check_shard(path: Path, shard: ShardInfo) -> None:
    check_shard_file(path, shard)
    try:
        whole = sha256_file(path) == shard.sha256
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({reason_of(error)}); mend that and repeat the command"
        ) from error
    if not whole:
        raise UserError(
            f"{path}: the shard is damaged (its bytes are not those of its checksum); {REBUILD}, "
            "or train without its damaged records with --cache none --set train.on_corrupt=skip"
        )


def _shard_rows(path: Path, shard: ShardInfo, manifest: Manifest) -> Iterator[Rows]:
    dtype = row_dtype(manifest.tensors)
    try:
        reader = ArrayRecordReader(str(path))
        if reader.num_records() != shard.records:
            raise ValueError(f"{reader.num_records()} records instead of {shard.records}")
        for start in range(0, shard.records, _CHUNK):
            serialized = reader.read(start, min(start + _CHUNK, shard.records))
            rows = np.empty(len(serialized), dtype)
            for name, column in decode_columns(serialized, manifest.tensors).items():
                rows[name] = column
            yield rows
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"{path}: the shard does not fit the manifest ({error}); {REBUILD}"
        ) from error


class RowReader:
    """`Records` that were made rows.

    Args:
        directory: of the dataset.
        manifest: of the dataset.
        rows: (splits * records,), as `read_rows` gives them.
    """

    def __init__(self, directory: Path, manifest: Manifest, rows: Rows):
        self.directory, self.manifest = directory, manifest
        self._rows = rows

    def __len__(self) -> int:
        return self.manifest.counts.written

    def gather(self, index: Index, mirrored: NDArray[np.bool_]) -> Columns:
        """See `flowtrain.records.reader.Records`; nothing is damaged."""
        check_range(index, len(self))
        rows = np.where(mirrored, index + len(self), index)
        return {name: self._rows[name][rows] for name in self._rows.dtype.names or ()}
