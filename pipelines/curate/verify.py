"""`data verify`: is every byte of a dataset what its manifest says, and does every record hold what
it should?

Nothing is taken on trust, the manifest included: it and `settings.json` carry their own digests,
the manifest those of all other files. Records are decoded although the checksums would tell damage,
since a writer may be wrong too; so are the statistics of the channels computed again.
"""

import hashlib
import json
import math
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from pipelines.curate.repair import repair_commands
from pipelines.dataset.anywhere import (
    StoredDataset,
    key_hash,
    local_copy,
    read_manifest_bytes,
    repeated,
)
from pipelines.dataset.shard_results import ChannelSums
from pipelines.dataset.shards import read_shard
from schemas.errors import UserError
from schemas.files import sha256_file
from schemas.manifest import (
    MANIFEST_NAME,
    REJECTS_NAME,
    RESULTS_NAME,
    FileInfo,
    Manifest,
    ShardInfo,
    parse_manifest,
)
from schemas.record import Record, decode_record
from schemas.sealed import unseal
from schemas.storage import paths
from schemas.tfds_metadata import FEATURES_NAME, INFO_NAME, LABELS_NAME

MAX_WORKERS = 8
# of the channel statistics, relative to the root mean square: sums in another order round otherwise
TOLERANCE = 1e-6
_BATCH_VALUES = 2**14  # values that are summed at once
_OTHER_BYTES = "its bytes are not those of the checksum in the manifest"


@dataclass(frozen=True)
class Damage:
    """A file that is not what it should be."""

    file: str
    problem: str


@dataclass(frozen=True)
class Report:
    """What `verify` found. `commands` rebuild what is damaged, and nothing else, when run one after
    the other.
    """

    root: str
    files: int
    bytes: int
    records: int
    damaged: tuple[Damage, ...]
    foreign: tuple[str, ...]
    commands: tuple[str, ...]
    note: str = ""


@dataclass
class _Shard:
    """What was read of a shard. `keys` are hashes; where there is damage the arrays are empty and
    nothing is summed.

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
        raise UserError(f"{root}: cannot be listed ({error.strerror or error})") from error
    damaged: list[Damage] = []
    try:
        manifest = parse_manifest(data, MANIFEST_NAME)
    except UserError as error:
        if _from_elsewhere(data):
            raise UserError(f"{root}: {error}") from None
        problem, _, _ = str(error).removeprefix(f"{MANIFEST_NAME}: ").partition(";")
        damaged.append(Damage(MANIFEST_NAME, f"{problem}; no other file was checked"))
        repair = repair_commands(root, None, [MANIFEST_NAME], sizes)
        return Report(root, 1, len(data), 0, tuple(damaged), (), *repair)
    dataset = StoredDataset(root, manifest)
    total = sum(info.bytes for info in (*manifest.shards, *manifest.files))
    with tqdm(
        total=total, unit="B", unit_scale=True, desc="verify", disable=_disabled(progress)
    ) as bar:
        shards = _read_shards(dataset, bar)
        damaged += [Damage(shard.info.name, shard.problem) for shard in shards if shard.problem]
        damaged += _check_files(dataset, bar)
    damaged += _check_sealed(dataset)
    damaged += _check_keys(dataset, shards)
    if not damaged:
        damaged += _check_agreement(dataset)
    if not damaged:
        damaged += _check_statistics(manifest, shards)
    known = {info.name for info in (*manifest.shards, *manifest.files)} | {
        *manifest.sealed,
        MANIFEST_NAME,
    }
    return Report(
        root,
        len(known),
        len(data) + sum(sizes.get(name, 0) for name in known - {MANIFEST_NAME}),
        sum(len(shard.keys) for shard in shards),
        tuple(sorted(damaged, key=lambda damage: damage.file)),
        tuple(sorted(sizes.keys() - known)),
        *repair_commands(root, manifest, sorted({damage.file for damage in damaged}), sizes),
    )


def _disabled(progress: bool | None) -> bool | None:
    return None if progress is None else not progress


def _from_elsewhere(data: bytes) -> bool:
    """Whether a manifest that cannot be read is whole all the same: written by another release, not
    damaged.
    """
    try:
        unseal(data)
    except ValueError:
        return False
    return True


def _read_shards(dataset: StoredDataset, bar: Any) -> list[_Shard]:
    """All shards, in the order of the manifest; several at a time, since hashing leaves Python to
    the others.
    """
    workers = min(MAX_WORKERS, os.cpu_count() or 1, max(1, len(dataset.manifest.shards)))
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(lambda info: _read_shard(dataset, info, bar), dataset.manifest.shards))


def _read_shard(dataset: StoredDataset, info: ShardInfo, bar: Any) -> _Shard:
    try:
        with local_copy(dataset.root, info.name) as path:
            problem = _file_problem(path, info)
            return _Shard(info, problem) if problem else _read_records(path, dataset.manifest, info)
    except OSError as error:
        return _Shard(info, _unreadable(error))
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
    return (
        "missing"
        if isinstance(error, FileNotFoundError)
        else f"cannot be read ({error.strerror or error})"
    )


def _read_records(path: Path, manifest: Manifest, info: ShardInfo) -> _Shard:
    """Decode every record; the first that is not as it should be is the shard's problem."""
    keys, labels = np.zeros(info.records, np.uint64), np.zeros(info.records, np.int64)
    count, sums = 0, _Sums(manifest)
    try:
        for count, serialized in enumerate(read_shard(path), 1):
            record = _checked(serialized, manifest)
            if isinstance(record, str):
                return _Shard(info, f"record {count - 1}: {record}")
            if count <= info.records:
                keys[count - 1], labels[count - 1] = key_hash(record.key), record.label
            if info.split == manifest.split:
                sums.add(record)
    except UserError:
        return _Shard(info, f"cannot be read beyond record {count}")
    if count != info.records:
        return _Shard(info, f"{count} records instead of {info.records}")
    return _Shard(info, None, keys, labels, sums.done())


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
    """Adds up the channels of records, a batch at a time: one by one small ones take six times as
    long.
    """

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
            text = unseal(paths.read(dataset.where(name)))
        except OSError as error:
            yield Damage(name, _unreadable(error))
        except ValueError as error:
            yield Damage(name, str(error))
        else:
            source = json.loads(text).get("source")
            if source is not None and source != dataset.manifest.source.model_dump(mode="json"):
                yield Damage(name, "belongs to another dataset")


def _check_keys(dataset: StoredDataset, shards: Sequence[_Shard]) -> Iterator[Damage]:
    """Keys are unique; the mirrored split has the keys and labels of the main one, in the same
    order.
    """
    main, *others = (
        [shard for shard in shards if shard.info.split == split]
        for split in dataset.manifest.splits
    )
    hashes = np.concatenate([shard.keys for shard in main]) if main else np.zeros(0, np.uint64)
    yield from _name_repeated(dataset, main, repeated(hashes))
    for mirrored in others:
        if len(mirrored) != len(main):
            yield Damage(MANIFEST_NAME, f"{len(mirrored)} mirrored shards for {len(main)}")
        for one, other in zip(main, mirrored, strict=False):
            if one.problem or other.problem:
                continue
            if not (
                np.array_equal(one.keys, other.keys) and np.array_equal(one.labels, other.labels)
            ):
                yield Damage(
                    other.info.name, f"other keys or labels, or another order, than {one.info.name}"
                )


def _name_repeated(
    dataset: StoredDataset, main: Sequence[_Shard], hashes: NDArray[np.uint64]
) -> Iterator[Damage]:
    """Read the shards again in which a key seems to appear twice: names it, and tells chance from
    damage.
    """
    first: dict[str, str] = {}
    for shard in main:
        if not np.isin(shard.keys, hashes).any():
            continue
        with local_copy(dataset.root, shard.info.name) as path:
            for serialized in read_shard(path):
                key = decode_record(serialized, dataset.manifest.tensors).key
                if key in first:
                    yield Damage(shard.info.name, f"key {json.dumps(key)} is also in {first[key]}")
                    break
                if key_hash(key) in hashes:
                    first[key] = shard.info.name


def _check_agreement(dataset: StoredDataset) -> Iterator[Damage]:
    """Files with the right checksums that contradict the manifest: a writer was wrong. Only for
    what is there.
    """
    manifest = dataset.manifest
    listed = {info.name for info in manifest.files}
    for split in manifest.splits:
        if sum(shard.records for shard in manifest.split_shards(split)) != manifest.counts.written:
            yield Damage(
                MANIFEST_NAME, f"the shards of {split} do not add up to the records written"
            )
    for name, check in _AGREEMENT.items():
        if name in listed:
            try:
                agrees = check(paths.read(dataset.where(name)), manifest)
            except (ValueError, KeyError, TypeError, AttributeError):
                agrees = False
            if not agrees:
                yield Damage(name, "does not agree with the manifest")


def _check_statistics(manifest: Manifest, shards: Sequence[_Shard]) -> Iterator[Damage]:
    """The statistics of the channels are those of the records; where they come from wrong sums,
    these are to blame.
    """
    sums = [part for shard in shards for part in shard.channels]
    if not sums:
        return
    found, told = ChannelSums.merge(sums, manifest.shape[2]).statistics(), manifest.channels
    scale = TOLERANCE * np.hypot(told.mean, told.std)
    near = [
        np.abs(np.subtract(a, b)) <= scale
        for a, b in ((found.mean, told.mean), (found.std, told.std))
    ]
    if not np.all(near):
        listed = any(info.name == RESULTS_NAME for info in manifest.files)
        name = RESULTS_NAME if listed else MANIFEST_NAME
        yield Damage(name, "the mean and deviation of the channels are not those of the records")


def _features_agree(data: bytes, manifest: Manifest) -> bool:
    features = json.loads(data)["featuresDict"]["features"]
    stored = {
        name: (
            tuple(int(size) for size in entry["tensor"]["shape"]["dimensions"]),
            entry["tensor"]["dtype"],
        )
        for name, entry in features.items()
        if "tensor" in entry
    }
    classes = int(features["label"]["classLabel"]["numClasses"])
    specs = {name: (spec.shape, spec.dtype) for name, spec in manifest.tensors.items()}
    return stored == specs and classes == len(manifest.classes)


def _info_agrees(data: bytes, manifest: Manifest) -> bool:
    splits = {
        split["name"]: [int(length) for length in split["shardLengths"]]
        for split in json.loads(data)["splits"]
    }
    return splits == {
        split: [s.records for s in manifest.split_shards(split)] for split in manifest.splits
    }


_AGREEMENT = {
    FEATURES_NAME: _features_agree,
    INFO_NAME: _info_agrees,
    LABELS_NAME: lambda data, manifest: (
        data.decode() == "".join(f"{name}\n" for name in manifest.classes)
    ),
    REJECTS_NAME: lambda data, manifest: len(data.splitlines()) == manifest.counts.rejected,
    RESULTS_NAME: lambda data, manifest: (
        [shard["files"][0]["name"] for shard in map(json.loads, data.splitlines())]
        == [shard.name for shard in manifest.split_shards(manifest.split)]
    ),
}
