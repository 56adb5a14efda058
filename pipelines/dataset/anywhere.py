"""A finished dataset, local or remote: manifest, small files, shards as local files."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipelines.dataset.shards import read_shard, read_some
from schemas.errors import UserError, reason_of
from schemas.manifest import (
    MANIFEST_NAME,
    MERGE_NAME,
    REBUILD,
    SAMPLING_NAME,
    SETTINGS_NAME,
    Manifest,
    ShardInfo,
    parse_manifest,
    unfinished,
)
from schemas.record import Record, decode_record
from schemas.storage import paths
from schemas.storage.directory import WORK
from schemas.storage.url import is_url

# What the commands that make a dataset leave there from their first moment on.
_BEGUN = (WORK, SETTINGS_NAME, MERGE_NAME, SAMPLING_NAME)


@dataclass(frozen=True)
class StoredDataset:
    """A dataset with a manifest. `root` is an absolute path or a URL."""

    root: str
    manifest: Manifest

    def where(self, name: str) -> str:
        """Path or URL of a file."""
        return paths.join(self.root, name)

    def records(self, shard: ShardInfo, rows: Sequence[int] | None = None) -> Iterator[Record]:
        """The records of a shard, in order, or those at some rows of it.

        Raises:
            UserError: the shard is missing or damaged, or the storage fails.
        """
        where = self.where(shard.name)
        try:
            with paths.local_copy(where) as path:
                for serialized in read_shard(path) if rows is None else read_some(path, rows):
                    yield decode_record(serialized, self.manifest.tensors)
        except ValueError as error:
            raise UserError(
                f"{where}: a record does not fit the manifest ({error}); {REBUILD}"
            ) from error
        except OSError as error:
            raise UserError(f"{where}: cannot be read ({reason_of(error)})") from error

    def at(self, split: str, rows: Sequence[int]) -> list[Record]:
        """Some records of a split, in the order of `rows`; each shard they lie in is opened once.

        Raises:
            UserError: as `records`.
        """
        wanted, found, first = set(rows), dict[int, Record](), 0
        for shard in self.manifest.split_shards(split):
            here = sorted(row for row in wanted if first <= row < first + shard.records)
            if here:
                found |= zip(here, self.records(shard, [row - first for row in here]), strict=True)
            first += shard.records
        return [found[row] for row in rows]


def open_dataset(where: str) -> StoredDataset:
    """A dataset by path or URL.

    Raises:
        UserError: nothing there, unfinished, damaged, or of another release.
    """
    root = paths.absolute(where)
    return StoredDataset(
        root, parse_manifest(read_manifest_bytes(root), paths.join(root, MANIFEST_NAME))
    )


def read_manifest_bytes(root: str) -> bytes:
    """The manifest as it lies there.

    Raises:
        UserError: no such directory, no manifest in it, or it cannot be read.
    """
    if not is_url(root) and Path(root).is_file():
        raise UserError(
            f"{root} is a file, not a dataset directory; give the directory that holds "
            f"{MANIFEST_NAME}"
        )
    if not is_url(root) and not Path(root).is_dir():
        raise UserError(f"{root}: no such dataset directory; make it with `flowtrain preprocess`")
    path = paths.join(root, MANIFEST_NAME)
    try:
        return paths.read(path)
    except FileNotFoundError:
        if _begun(root):
            raise unfinished(root) from None
        raise UserError(
            f"{root}: no {MANIFEST_NAME}, so this is not a dataset; make one with `flowtrain "
            "preprocess`"
        ) from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({reason_of(error)})") from error


def _begun(root: str) -> bool:
    """Whether a command has begun a dataset here; where the storage does not tell, it may have."""
    try:
        if any(paths.exists(paths.join(root, name)) for name in _BEGUN):
            return True
        return next(paths.entries(paths.join(root, WORK)), None) is not None
    except FileNotFoundError:
        return False
    except OSError:
        return True


def key_hash(key: str) -> int:
    """64 bits that stand for a key where all keys of a dataset have to be held at once."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")


def repeated(hashes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The values that occur more than once."""
    ordered = np.sort(hashes)
    return np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
