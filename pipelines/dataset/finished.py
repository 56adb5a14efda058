"""A finished dataset directory: read its records, or write the files that finish one."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipelines.dataset.card import CARD_NAME, dataset_card
from pipelines.dataset.shards import read_shard
from schemas.errors import UserError
from schemas.manifest import MANIFEST_NAME, REBUILD, FileInfo, Manifest, ShardInfo, read_manifest
from schemas.record import Record, decode_record
from schemas.storage import paths
from schemas.storage.directory import Directory
from schemas.tfds_metadata import (
    FEATURES_NAME,
    INFO_NAME,
    LABELS_NAME,
    dataset_info_json,
    features_json,
    labels_txt,
)


class LatentDataset:
    """A dataset that is whole: the manifest is readable and every shard is there with its size.

    Args:
        directory: where it lies.

    Raises:
        UserError: unfinished, of a future version, or a shard is missing or has another size.
    """

    def __init__(self, directory: Path):
        self.directory = Path(directory)
        self.manifest = read_manifest(self.directory)
        check_shards(self.directory, self.manifest)

    def __len__(self) -> int:
        """Records of one split; all splits have the same."""
        return self.manifest.counts.written

    def records(
        self, split: str | None = None, start: int = 0, stop: int | None = None
    ) -> Iterator[Record]:
        """Records [start, stop) of a split, in order; default all of the main split.

        Raises:
            UserError: no such split, or a damaged shard.
        """
        shards = self.manifest.split_shards(split or self.manifest.split)
        if not shards:
            raise UserError(
                f"{self.directory}: no split {split!r}; it has {', '.join(self.manifest.splits)}"
            )
        first, end = 0, len(self) if stop is None else stop
        for shard in shards:
            begin, finish = max(start - first, 0), min(end - first, shard.records)
            if begin < finish:
                yield from self._shard_records(shard, begin, finish)
            first += shard.records

    def _shard_records(self, shard: ShardInfo, start: int, stop: int) -> Iterator[Record]:
        path = self.directory / shard.name
        for serialized in read_shard(path, start, stop):
            try:
                yield decode_record(serialized, self.manifest.tensors)
            except ValueError as error:
                raise UserError(
                    f"{path}: a record does not fit the manifest ({error}); {REBUILD}"
                ) from error


def check_shards(directory: Path, manifest: Manifest) -> None:
    """Look at the presence and size of every shard; contents are not read.

    Raises:
        UserError: naming the first shard that is missing or has another size.
    """
    for shard in manifest.shards:
        path = directory / shard.name
        size = path.stat().st_size if path.is_file() else None
        if size != shard.bytes:
            what = "is missing" if size is None else f"has {size} bytes instead of {shard.bytes}"
            raise UserError(f"{path}: the shard {what}; {REBUILD}")


def dataset_whole(root: str, manifest: Manifest) -> bool:
    """Whether each file of a dataset (path or URL) has its size; contents are not read."""
    sizes = {entry.name: entry.size for entry in paths.entries(root)}
    listed = {info.name: info.bytes for info in (*manifest.shards, *manifest.files)}
    return listed.items() <= sizes.items() and sizes.keys() >= {*manifest.sealed}


def finish_dataset(
    directory: Directory, manifest: Manifest, others: Sequence[str] = ()
) -> Manifest:
    """Make a directory of shards a dataset: card, files for TFDS, and last the manifest.

    Args:
        directory: where the shards lie.
        manifest: all that is known but for `files`.
        others: names of files that were written before and belong to the dataset.

    Returns:
        The manifest with `files` filled in, as it was written.
    """
    splits = {
        split: [(shard.records, shard.bytes) for shard in manifest.split_shards(split)]
        for split in manifest.splits
    }
    description = (
        f"{manifest.layout.value} of {manifest.source.descriptor} at {manifest.resolution} pixels"
    )
    texts = {
        CARD_NAME: dataset_card(manifest),
        FEATURES_NAME: features_json(manifest.tensors, len(manifest.classes)),
        LABELS_NAME: labels_txt(manifest.classes),
        INFO_NAME: dataset_info_json(splits, description),
    }
    for name, text in texts.items():
        directory.write(name, text)
    contents = {name: text.encode() for name, text in texts.items()} | {
        name: directory.read(name) for name in others
    }
    finished = manifest.model_copy(
        update={
            "files": tuple(
                FileInfo(name=name, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
                for name, data in sorted(contents.items())
            )
        }
    )
    directory.write(MANIFEST_NAME, finished.to_json())
    return finished
