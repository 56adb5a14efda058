"""Random access to the records of a finished dataset, straight from its shards."""

import resource
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader
from numpy.typing import NDArray

from schemas.columns import Columns, decode_columns
from schemas.errors import UserError, reason_of
from schemas.files import sha256_file
from schemas.manifest import REBUILD, REMAKE, Manifest, ShardInfo, read_manifest
from schemas.record import Record, decode_record

Index = NDArray[np.int64]
Places = Mapping[tuple[int, bool], str]

# Nothing read ahead, small buffers: records are read at random.
_RANDOM = {"options": "readahead_buffer_size:0", "file_reader_buffer_size": 1 << 15}
_OTHER_FILES = 256  # that a process may have open besides the shards


class Records(Protocol):
    """What batches are made of. Safe in threads."""

    directory: Path
    manifest: Manifest

    def __len__(self) -> int:
        """Records of one split; all splits have the same."""
        ...

    def gather(self, index: Index, mirrored: NDArray[np.bool_]) -> Columns:
        """The n > 0 records at `index`, in order, from the main split or mirrored.

        Returns:
            One (n, h, w, c) array for each stored tensor in its stored dtype, and `label`, (n,)
            int32.

        Raises:
            DamagedRecordsError: some of them cannot be read.
            UserError: the storage fails.
            IndexError: there is no such record.
        """
        ...


class DamagedRecordsError(UserError):
    """Records whose bytes are not those that were written.

    Attributes:
        damaged: the line about each one, by (index, whether it is the mirror image). The error's
            text is the first.
    """

    def __init__(self, damaged: Places):
        super().__init__(next(iter(damaged.values())))
        self.damaged = damaged


class LatentReader:
    """`Records` of a dataset on a local disk, checked for damage when they are read.

    Args:
        directory: what `flowtrain preprocess` wrote.

    Raises:
        UserError: the dataset is unfinished, empty or newer than this release, or a shard is
            missing, truncated or damaged; the shard is named.
    """

    def __init__(self, directory: Path):
        self.directory = directory
        self.manifest = read_full_manifest(directory)
        _allow_open_files(directory, len(self.manifest.shards))
        self._splits = [_Split(directory, self.manifest, split) for split in self.manifest.splits]

    def __len__(self) -> int:
        return self.manifest.counts.written

    def __reduce__(self) -> tuple[type["LatentReader"], tuple[Path]]:
        return LatentReader, (self.directory,)

    def read(
        self, index: Sequence[int] | NDArray[np.integer], *, mirrored: bool = False
    ) -> list[Record]:
        """Records with keys at `index`, in order, from the main split or mirrored.

        Raises:
            DamagedRecordsError, UserError, IndexError: as `Records.gather`.
        """
        wanted = np.asarray(index, np.int64)
        choice = np.full(len(wanted), mirrored)
        try:
            return [
                decode_record(data, self.manifest.tensors)
                for data in self._serialized(wanted, choice)
            ]
        except (RuntimeError, ValueError) as error:
            raise self._diagnose(wanted, choice, error) from error

    def gather(self, index: Index, mirrored: NDArray[np.bool_]) -> Columns:
        """See `Records`."""
        try:
            return decode_columns(self._serialized(index, mirrored), self.manifest.tensors)
        except (RuntimeError, ValueError) as error:  # of array_record and of `schemas.record`
            raise self._diagnose(index, mirrored, error) from error

    def _serialized(self, index: Index, mirrored: NDArray[np.bool_]) -> list[bytes]:
        check_range(index, len(self))
        found = [b""] * len(index)
        for number, split in enumerate(self._splits):
            places = np.flatnonzero(mirrored == bool(number))
            for place, data in zip(places, split.read(index[places]), strict=True):
                found[place] = data
        return found

    def _diagnose(self, index: Index, mirrored: NDArray[np.bool_], error: Exception) -> UserError:
        """Read one by one what could not be read together."""
        damaged = {}
        for place, flipped in zip(index.tolist(), mirrored.tolist(), strict=True):
            split = self._splits[int(flipped)]
            try:
                decode_record(split.read(np.array([place]))[0], self.manifest.tensors)
            except (RuntimeError, ValueError) as reason:
                path, shard = split.shard_of(place)
                _check_damaged(path, shard, reason)
                damaged[place, flipped] = (
                    f"{path}: record {place} of split {shard.split!r} is damaged; {REBUILD}, "
                    "or train without it with --set train.on_corrupt=skip"
                )
        if damaged:
            return DamagedRecordsError(damaged)
        return UserError(
            f"{self.directory}: could not be read for a moment ({error}); repeat the command"
        )


class ManifestOnly:
    """`Records` of which only the manifest is here: something to plan with, and nothing to read.

    Args:
        where: path or URL of the dataset.
        manifest: of the dataset.

    Raises:
        UserError: the dataset is empty.
    """

    def __init__(self, where: str, manifest: Manifest):
        check_full(where, manifest)
        self.directory, self.manifest = Path(where), manifest

    def __len__(self) -> int:
        return self.manifest.counts.written

    def gather(self, index: Index, mirrored: NDArray[np.bool_]) -> Columns:
        """Never: see `Records`."""
        raise UserError(
            f"{self.directory}: only the manifest was read; bring the dataset to a local disk"
        )


class _Split:
    """The open shards of one split."""

    def __init__(self, directory: Path, manifest: Manifest, split: str):
        self._directory = directory
        self._shards = manifest.split_shards(split)
        counts = [shard.records for shard in self._shards]
        self._ends = np.cumsum(counts, dtype=np.int64)
        self._starts = self._ends - counts
        self._readers = [_open(directory / shard.name, shard) for shard in self._shards]

    def read(self, index: Index) -> list[bytes]:
        """Serialized records, in order. Asked for one by one: array_record hands each record of a
        list to a thread of its own, which takes twice the CPU time, and there are threads that read
        batches already.

        Raises:
            RuntimeError: from array_record.
        """
        numbers = np.searchsorted(self._ends, index, side="right")
        rows = index - self._starts[numbers]
        pairs = zip(numbers.tolist(), rows.tolist(), strict=True)
        return [self._readers[number].read(row, row + 1)[0] for number, row in pairs]

    def shard_of(self, index: int) -> tuple[Path, ShardInfo]:
        """The file that holds a record."""
        shard = self._shards[int(np.searchsorted(self._ends, index, side="right"))]
        return self._directory / shard.name, shard


def read_full_manifest(directory: Path) -> Manifest:
    """The manifest of a dataset that has records, in all splits the same number.

    Raises:
        UserError: the dataset is empty, a split holds another number of records, or the manifest
            cannot be read (see `schemas.manifest.read_manifest`).
    """
    manifest = read_manifest(directory)
    check_full(str(directory), manifest)
    return manifest


def check_full(where: str, manifest: Manifest) -> None:
    """Refuse a dataset whose manifest counts no records, or not the same number in all splits.

    Raises:
        UserError: the dataset is empty, or a split holds another number of records.
    """
    if not manifest.counts.written:
        raise UserError(f"{where}: the dataset holds no records; use another one")
    for split in manifest.splits:
        count = sum(shard.records for shard in manifest.split_shards(split))
        if count != manifest.counts.written:
            raise UserError(
                f"{where}: split {split!r} holds {count} records, not {manifest.counts.written}; "
                f"{REBUILD}"
            )


def check_range(index: Index, records: int) -> None:
    """Refuse indices that are none, which NumPy would count from the end.

    Raises:
        IndexError: there is no such record.
    """
    if index.min() < 0 or index.max() >= records:
        raise IndexError(f"records {index.min()} to {index.max()} of a dataset of {records}")


def check_shard_file(path: Path, shard: ShardInfo) -> None:
    """See that a shard is there with its size; contents are not read.

    Raises:
        UserError: the shard is missing or has another size.
    """
    if not path.is_file():
        raise UserError(f"{path}: shard is missing; {REMAKE}")
    size = path.stat().st_size
    if size != shard.bytes:
        raise UserError(f"{path}: shard has {size} bytes, not {shard.bytes}: truncated? {REBUILD}")


def _open(path: Path, shard: ShardInfo) -> ArrayRecordReader:
    check_shard_file(path, shard)
    try:
        reader = ArrayRecordReader(str(path), **_RANDOM)
    except RuntimeError as error:
        raise UserError(
            f"{path}: cannot be opened ({error}); mend that and repeat the command"
        ) from error
    count = reader.num_records()  # 0 where it is damaged
    if count != shard.records:
        raise UserError(
            f"{path}: shard holds {count} readable records, not {shard.records}; {REBUILD}"
        )
    return reader


def _check_damaged(path: Path, shard: ShardInfo, error: Exception) -> None:
    """Tell a damaged record, which may be skipped, from a failing disk or a wrong writer.

    Raises:
        UserError: the file is gone or cannot be read, or it is what was written.
    """
    check_shard_file(path, shard)
    try:
        whole = sha256_file(path) == shard.sha256
    except OSError as reason:
        raise UserError(
            f"{path}: cannot be read ({reason_of(reason)}); mend that and repeat the command"
        ) from error
    if whole:
        raise UserError(
            f"{path}: the shard is whole, but a record cannot be read ({error}); {REBUILD}"
        ) from error


def _allow_open_files(directory: Path, shards: int) -> None:
    """Raise the soft limit of open files to the hard one where a dataset has more shards than that.

    Raises:
        UserError: the hard limit is lower, too.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = shards + _OTHER_FILES
    if _allows(soft, needed):
        return
    if not _allows(hard, needed):
        raise UserError(
            f"{directory}: {shards} shards are too many for a process that may open {hard} files; "
            f"raise the limit (ulimit -n {needed}) or use --cache disk"
        )
    resource.setrlimit(
        resource.RLIMIT_NOFILE, (needed if hard == resource.RLIM_INFINITY else hard, hard)
    )


def _allows(limit: int, needed: int) -> bool:
    return limit == resource.RLIM_INFINITY or limit >= needed
