"""Batches of a latent dataset, by index, through Grain.

Which records make batch b is arithmetic: the epochs' permutations are laid end to end and cut into batches, so every
record is seen once an epoch, no record is dropped, and the position of the loader is the step number and nothing
else. Reading by batch instead of by record is what makes Grain fast here: per-record Python dominates otherwise.
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, SupportsIndex, cast

import grain
import numpy as np
from array_record.python.array_record_module import ArrayRecordReader
from numpy.typing import NDArray

from flowtrain.counter import Purpose, host_bits
from schemas.errors import UserError
from schemas.layout import Layout
from schemas.manifest import REBUILD, REMAKE, Manifest, read_manifest
from schemas.pixels import from_uint8
from schemas.record import Record, decode_record

Batch = dict[str, NDArray[Any]]


@functools.lru_cache(maxsize=2)  # a batch touches two epochs at most
def epoch_order(seed: int, epoch: int, records: int) -> NDArray[np.int64]:
    """The permutation of `records` record indices in which an epoch visits them."""
    bits = host_bits(seed, Purpose.ORDER, epoch, np.arange(records))
    return np.argsort(bits, kind="stable")  # the bits are distinct: a hash that is a bijection


def batch_records(seed: int, batch: int, batch_size: int, records: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(epoch, index), each (batch_size,), of the records of batch number `batch`."""
    position = batch * batch_size + np.arange(batch_size)
    epoch, place = np.divmod(position, records)
    index = np.empty(batch_size, np.int64)
    for one in np.unique(epoch):
        here = epoch == one
        index[here] = epoch_order(seed, int(one), records)[place[here]]
    return epoch, index


class _RandomAccess(Protocol):
    """What is used of `grain.sources.ArrayRecordDataSource`, whose stubs do not say it."""

    def __len__(self) -> int: ...
    def __getitem__(self, record_key: SupportsIndex, /) -> bytes: ...
    def __getitems__(self, record_keys: Sequence[SupportsIndex], /) -> Sequence[bytes]: ...


class LatentReader:
    """Random access to the records of a finished dataset on a local disk.

    Args:
        directory: what `flowtrain preprocess` wrote.

    Raises:
        UserError: the dataset is unfinished or newer than this release, or a shard is missing, truncated or damaged;
            the shard is named.
    """

    def __init__(self, directory: Path):
        self.directory = directory
        self.manifest: Manifest = read_manifest(directory)
        self._sources = [self._open(split) for split in self.manifest.splits]

    def __len__(self) -> int:
        return len(self._sources[0])

    def read(self, index: Sequence[int] | NDArray[np.integer], *, mirrored: bool = False) -> list[Record]:
        """The records at `index`, in that order, from the main split or from its mirror image."""
        try:
            serialized = self._sources[int(mirrored)].__getitems__([int(i) for i in index])
            return [decode_record(data, self.manifest.tensors) for data in serialized]
        except Exception as error:  # array_record raises bare exceptions on damaged bytes
            raise UserError(self._name_damage(index, mirrored, error)) from error

    def _open(self, split: str) -> _RandomAccess:
        paths = []
        for shard in self.manifest.split_shards(split):
            path = self.directory / shard.name
            if not path.is_file():
                raise UserError(f"{path}: shard is missing; {REMAKE}")
            if path.stat().st_size != shard.bytes:
                size = path.stat().st_size
                raise UserError(f"{path}: shard has {size} bytes, not {shard.bytes}: truncated? {REBUILD}")
            count = _count_records(path)
            if count != shard.records:
                raise UserError(f"{path}: shard holds {count} readable records, not {shard.records}; {REBUILD}")
            if count:
                paths.append(str(path))
        if not paths:
            raise UserError(f"{self.directory}: split {split!r} holds no records; {REBUILD}")
        return cast(_RandomAccess, grain.sources.ArrayRecordDataSource(paths))

    def _name_damage(self, index: Sequence[int] | NDArray[np.integer], mirrored: bool, error: Exception) -> str:
        split = self.manifest.splits[int(mirrored)]
        for i in index:
            try:
                decode_record(self._sources[int(mirrored)][int(i)], self.manifest.tensors)
            except Exception:
                ends = np.cumsum([shard.records for shard in self.manifest.split_shards(split)])
                shard = self.manifest.split_shards(split)[int(np.searchsorted(ends, i, side="right"))]
                return f"{self.directory / shard.name}: record {i} of split {split!r} is damaged; {REBUILD}"
        return f"{self.directory}: cannot read split {split!r}: {error}; {REBUILD}"


def _count_records(path: Path) -> int:
    """Records that array_record can see; 0 for a damaged file, of which it tells only on closing."""
    reader = ArrayRecordReader(str(path))
    try:
        count = reader.num_records() if reader.ok() else 0
        reader.close()
    except RuntimeError:
        return 0
    return count


class BatchReader:
    """Batch number -> arrays: a pure function of (dataset, seed, batch size), picklable and safe in threads."""

    def __init__(self, reader: LatentReader, *, batch_size: int, seed: int, flip: bool):
        self.reader, self.batch_size, self.seed = reader, batch_size, seed
        self.flip = flip and reader.manifest.flips

    def __call__(self, batch: int) -> Batch:
        """Arrays of one batch of n records.

        Returns:
            `index`, `epoch`, `label`: (n,) int32. `index` counts the records of the dataset in shard order.
            One (n, h, w, c) array for each stored tensor in its stored dtype; pixels as float32 in [-1, 1].
        """
        epoch, index = batch_records(self.seed, int(batch), self.batch_size, len(self.reader))
        records = self._read(epoch, index)
        arrays: Batch = {name: np.stack([r.tensors[name] for r in records]) for name in records[0].tensors}
        if self.reader.manifest.layout == Layout.IMAGE:
            arrays["image"] = from_uint8(arrays["image"])
        label = np.array([record.label for record in records], np.int32)
        return arrays | {"index": index.astype(np.int32), "epoch": epoch.astype(np.int32), "label": label}

    def _read(self, epoch: NDArray[np.int64], index: NDArray[np.int64]) -> list[Record]:
        if not self.flip:
            return self.reader.read(index)
        mirrored = (host_bits(self.seed, Purpose.FLIP, epoch, index) & np.uint64(1)).astype(bool)
        records: list[Record | None] = [None] * len(index)
        for choice in (False, True):
            places = np.flatnonzero(mirrored == choice)
            if places.size:
                for place, record in zip(places, self.reader.read(index[places], mirrored=choice), strict=True):
                    records[place] = record
        return [record for record in records if record is not None]


def make_loader(batches: BatchReader, steps: int) -> grain.DatasetIterator[Batch]:
    """An iterator over `steps` batches, read ahead in threads.

    Its state, `{"next_index": step}`, is the number of batches handed out, not of those read ahead.
    """
    dataset = grain.MapDataset.range(steps).map(batches)
    return iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)))


def seek(loader: grain.DatasetIterator[Batch], step: int) -> None:
    """Move a loader so that the next batch is number `step`."""
    loader.set_state({"next_index": step})
