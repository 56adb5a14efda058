"""`data verify`: every byte is as its manifest says, every record as it should be.

Nothing is taken on trust, the manifest included: it and `settings.json` carry their own digests,
the manifest those of all other files. Records are decoded although the checksums would tell damage,
since a writer may be wrong too; so are the statistics of the channels computed again.
"""

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.curate.agreement import Damage, check_agreement
from pipelines.curate.repair import repair_commands
from pipelines.dataset.anywhere import (
    StoredDataset,
    key_hash,
    read_manifest_bytes,
    repeated,
)
from pipelines.dataset.shard_results import ChannelSums
from pipelines.dataset.shards import read_shard
from schemas.bars import bytes_bar
from schemas.errors import UserError, reason_of
from schemas.files import sha256_file
from schemas.json_text import parse_object
from schemas.manifest import (
    MANIFEST_NAME,
    RESULTS_NAME,
    FileInfo,
    Manifest,
    ShardInfo,
    parse_manifest,
)
from schemas.record import Record, decode_record
from schemas.sealed import unseal
from schemas.storage import paths

MAX_WORKERS = 8
# of the channel statistics, relative to the root mean square: sums in another order round otherwise
TOLERANCE = 1e-6
_BATCH_VALUES = 2**14  # values that are summed at once
_OTHER_BYTES = "its bytes are not those of the checksum in the manifest"


@dataclass(frozen=True)
class Report:
    """Findings of `verify`. `commands`, run in turn, rebuild damaged files and nothing else."""

    root: str
    files: int
    bytes: int
    records: int
    damaged: tuple[Damage, ...]
    foreign: tuple[str, ...]
    commands: tuple[str, ...]
    note: str = ""


@dataclass
class _ReadShard:
    """A shard's keys (hashed) and labels; of a damaged one both are empty, and so are the sums.

    `channels` are the sums over the records of the main split.
    """

    info: ShardInfo
    problem: str | None = None
    keys: NDArray[np.uint64] = field(default_factory=lambda: np.zeros(0, np.uint64))
    labels: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    channels: tuple[ChannelSums, ...] = ()


def verify(where: str, progress: bool | None = False) -> Report:
    """Check every file and every record of a dataset.

    Args:
        where: path or URL.
        progress: show a bar on stderr; None where stderr is a terminal.

    Raises:
        UserError: no finished dataset there, of another release, or the storage cannot be read.
    """
    root = paths.absolute(where)
    data = read_manifest_bytes(root)
    try:
        sizes = {entry.name: entry.size for entry in paths.entries(root)}
    except OSError as error:
        raise UserError(f"{root}: cannot be listed ({reason_of(error)})") from error
    try:
        manifest = parse_manifest(data, MANIFEST_NAME)
    except UserError as error:
        if _from_elsewhere(data):
            raise UserError(f"{root}: {error}") from None
        return _report_of_manifest(root, data, str(error), sizes)

    shards, damaged = _damages(StoredDataset(root, manifest), progress)
    files = {info.name for info in (*manifest.shards, *manifest.files)}
    files |= {*manifest.sealed, MANIFEST_NAME}
    commands, note = repair_commands(
        root, manifest, sorted({damage.file for damage in damaged}), sizes
    )
    return Report(
        root,
        files=len(files),
        bytes=len(data) + sum(sizes.get(name, 0) for name in files - {MANIFEST_NAME}),
        records=sum(len(shard.keys) for shard in shards),
        damaged=tuple(sorted(damaged, key=lambda damage: damage.file)),
        foreign=tuple(sorted(sizes.keys() - files)),
        commands=commands,
        note=note,
    )


def _report_of_manifest(root: str, data: bytes, error: str, sizes: Mapping[str, int]) -> Report:
    """The report about a dataset whose manifest is damaged, so that no other file is checked."""
    problem, _, _ = error.removeprefix(f"{MANIFEST_NAME}: ").partition(";")
    damage = Damage(MANIFEST_NAME, f"{problem}; no other file was checked")
    commands, note = repair_commands(root, None, [MANIFEST_NAME], sizes)
    return Report(root, 1, len(data), 0, (damage,), (), commands, note)


def _damages(
    dataset: StoredDataset, progress: bool | None
) -> tuple[list[_ReadShard], list[Damage]]:
    """What all shards hold, and all that is damaged."""
    manifest = dataset.manifest
    total = sum(info.bytes for info in (*manifest.shards, *manifest.files))
    with bytes_bar(total, "verify", _disabled(progress)) as bar:
        shards = _read_shards(dataset, bar)
        damaged = [Damage(shard.info.name, shard.problem) for shard in shards if shard.problem]
        damaged += _check_files(dataset, bar)
    damaged += _check_sealed(dataset)
    damaged += _check_keys(dataset, shards)
    # Contradictions follow from damage: they tell something of whole files only.
    if not damaged:
        damaged += check_agreement(dataset)
    if not damaged:
        damaged += _check_statistics(manifest, shards)
    return shards, damaged


def _disabled(progress: bool | None) -> bool | None:
    return None if progress is None else not progress


def _from_elsewhere(data: bytes) -> bool:
    """Whether an unreadable manifest is whole: another release's, and not damaged."""
    try:
        unseal(data)
    except ValueError:
        return False
    return True


def _read_shards(dataset: StoredDataset, bar: Any) -> list[_ReadShard]:
    """All shards, in the manifest's order; several at a time, since hashing frees Python."""
    workers = min(MAX_WORKERS, os.cpu_count() or 1, max(1, len(dataset.manifest.shards)))
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(lambda info: _read_shard(dataset, info, bar), dataset.manifest.shards))


def _read_shard(dataset: StoredDataset, info: ShardInfo, bar: Any) -> _ReadShard:
    try:
        with paths.local_copy(dataset.where(info.name)) as path:
            problem = _file_problem(path, info)
            return (
                _ReadShard(info, problem)
                if problem
                else _read_records(path, dataset.manifest, info)
            )
    except OSError as error:
        return _ReadShard(info, _unreadable(error))
    finally:
        bar.update(info.bytes)


def _file_problem(path: Path, info: ShardInfo | FileInfo) -> str | None:
    if not path.is_file():
        return "missing"
    size = path.stat().st_size
    if size != info.bytes:
        return f"{size} bytes instead of {info.bytes}"
    return None if sha256_file(path) == info.sha256 else _OTHER_BYTES


def _unreadable(error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return "missing"
    return f"cannot be read ({reason_of(error)})"


def _read_records(path: Path, manifest: Manifest, info: ShardInfo) -> _ReadShard:
    """Decode every record; the first that is not as it should be is the shard's problem."""
    keys = np.zeros(info.records, np.uint64)
    labels = np.zeros(info.records, np.int64)
    sums = _Sums(manifest)
    count = 0
    try:
        for count, serialized in enumerate(read_shard(path), 1):
            record = _checked(serialized, manifest)
            if isinstance(record, str):
                return _ReadShard(info, f"record {count - 1}: {record}")
            if count <= info.records:
                keys[count - 1], labels[count - 1] = key_hash(record.key), record.label
            if info.split == manifest.split:
                sums.add(record)
    except UserError:
        return _ReadShard(info, f"cannot be read beyond record {count}")
    if count != info.records:
        return _ReadShard(info, f"{count} records instead of {info.records}")
    return _ReadShard(info, None, keys, labels, sums.done())


def _checked(serialized: bytes, manifest: Manifest) -> Record | str:
    """A record, or what is wrong with it."""
    try:
        record = decode_record(serialized, manifest.tensors)
    except ValueError as error:
        return str(error)
    if not 0 <= record.label < len(manifest.classes):
        return f"label {record.label} of {json.dumps(record.key)} is none of the classes"
    for name, values in record.tensors.items():
        if not np.isfinite(values).all():
            return f"{name} of {json.dumps(record.key)} is not finite"
    return record


class _Sums:
    """Adds up channels of records in batches; one at a time takes six times as long."""

    def __init__(self, manifest: Manifest):
        self._layout, self._channels = manifest.layout, manifest.shape[2]
        self._most = max(1, _BATCH_VALUES // math.prod(manifest.shape))
        self._waiting: list[Record] = []
        self._sums: tuple[ChannelSums, ...] = ()

    def add(self, record: Record) -> None:
        self._waiting.append(record)
        if len(self._waiting) >= self._most:
            self.done()

    def done(self) -> tuple[ChannelSums, ...]:
        """The sums of all that was added; empty when nothing was."""
        if self._waiting:
            names = self._waiting[0].tensors
            stacked = {
                name: np.stack([record.tensors[name] for record in self._waiting]) for name in names
            }
            with np.errstate(over="ignore"):
                batch = ChannelSums.of(self._layout, stacked)
            self._sums = (ChannelSums.merge((*self._sums, batch), self._channels),)
            self._waiting = []
        return self._sums


def _check_files(dataset: StoredDataset, bar: Any) -> Iterator[Damage]:
    for info in dataset.manifest.files:
        try:
            data = paths.read(dataset.where(info.name))
        except OSError as error:
            yield Damage(info.name, _unreadable(error))
            continue
        finally:
            bar.update(info.bytes)
        if hashlib.sha256(data).hexdigest() != info.sha256:
            yield Damage(info.name, _OTHER_BYTES)


def _check_sealed(dataset: StoredDataset) -> Iterator[Damage]:
    for name in dataset.manifest.sealed:
        try:
            values = parse_object(unseal(paths.read(dataset.where(name))))
        except OSError as error:
            yield Damage(name, _unreadable(error))
        except ValueError as error:
            yield Damage(name, str(error))
        else:
            source = values.get("source")
            if source is not None and source != dataset.manifest.source.model_dump(mode="json"):
                yield Damage(name, "belongs to another dataset")


def _check_keys(dataset: StoredDataset, shards: Sequence[_ReadShard]) -> Iterator[Damage]:
    """Keys are unique; the mirrored split has the main one's keys and labels, in order."""
    main, *others = (
        [shard for shard in shards if shard.info.split == split]
        for split in dataset.manifest.splits
    )
    hashes = np.concatenate([shard.keys for shard in main]) if main else np.zeros(0, np.uint64)
    yield from _name_repeated(dataset, main, repeated(hashes))
    for mirrored in others:
        if len(mirrored) != len(main):
            yield Damage(MANIFEST_NAME, f"{len(mirrored)} mirrored shards for {len(main)}")
        yield from _check_mirrored(main, mirrored)


def _check_mirrored(main: Sequence[_ReadShard], mirrored: Sequence[_ReadShard]) -> Iterator[Damage]:
    for one, mirror in zip(main, mirrored, strict=False):
        if one.problem or mirror.problem:
            continue
        same_keys = np.array_equal(one.keys, mirror.keys)
        if not same_keys or not np.array_equal(one.labels, mirror.labels):
            yield Damage(
                mirror.info.name, f"other keys or labels, or another order, than {one.info.name}"
            )


def _name_repeated(
    dataset: StoredDataset, main: Sequence[_ReadShard], hashes: NDArray[np.uint64]
) -> Iterator[Damage]:
    """Name the keys whose hashes repeat, if they are truly equal: reads those shards again."""
    first: dict[str, str] = {}
    for shard in main:
        if not np.isin(shard.keys, hashes).any():
            continue
        with paths.local_copy(dataset.where(shard.info.name)) as path:
            for serialized in read_shard(path):
                key = decode_record(serialized, dataset.manifest.tensors).key
                if key in first:
                    yield Damage(shard.info.name, f"key {json.dumps(key)} is also in {first[key]}")
                    break
                if key_hash(key) in hashes:
                    first[key] = shard.info.name


def _check_statistics(manifest: Manifest, shards: Sequence[_ReadShard]) -> Iterator[Damage]:
    """Channel statistics against the records'; wrong sums in the results file are named."""
    sums = [part for shard in shards for part in shard.channels]
    if not sums:
        return
    stated = manifest.channels
    try:
        actual = ChannelSums.merge(sums, manifest.shape[2]).statistics()
    except ValueError:
        yield Damage(MANIFEST_NAME, "the mean and deviation of the records are not finite")
        return
    scale = TOLERANCE * np.hypot(stated.mean, stated.std)
    near_mean = np.abs(np.subtract(actual.mean, stated.mean)) <= scale
    near_std = np.abs(np.subtract(actual.std, stated.std)) <= scale
    if not np.all(near_mean & near_std):
        listed = any(info.name == RESULTS_NAME for info in manifest.files)
        name = RESULTS_NAME if listed else MANIFEST_NAME
        yield Damage(name, "the mean and deviation of the channels are not those of the records")
