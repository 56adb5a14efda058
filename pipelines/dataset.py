"""A finished dataset directory: read its records, or write the files that finish one."""

from collections.abc import Iterator
from pathlib import Path

from pipelines.shards import read_shard
from schemas.errors import UserError
from schemas.files import write_atomic
from schemas.manifest import REBUILD, Manifest, ShardInfo, read_manifest, write_manifest
from schemas.record import Record, decode_record
from schemas.tfds_metadata import dataset_info_json, features_json, labels_txt


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

    def records(self, split: str | None = None, start: int = 0, stop: int | None = None) -> Iterator[Record]:
        """Records `start` to `stop` (exclusive, default all) of a split (default the main one), in order.

        Raises:
            UserError: no such split, or a damaged shard.
        """
        shards = self.manifest.split_shards(split or self.manifest.split)
        if not shards:
            raise UserError(f"{self.directory}: no split {split!r}; it has {', '.join(self.manifest.splits)}")
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
                raise UserError(f"{path}: a record does not fit the manifest ({error}); {REBUILD}") from error


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


def shards_whole(directory: Path, manifest: Manifest) -> bool:
    """Whether `check_shards` finds nothing."""
    try:
        check_shards(directory, manifest)
    except UserError:
        return False
    return True


def finish_dataset(directory: Path, manifest: Manifest) -> None:
    """Make a directory of shards a dataset: the files TensorFlow Datasets needs, then the manifest, last."""
    splits = {
        split: [(shard.records, shard.bytes) for shard in manifest.split_shards(split)] for split in manifest.splits
    }
    description = f"{manifest.layout.value} of {manifest.source.descriptor} at {manifest.resolution} pixels"
    write_atomic(directory / "features.json", features_json(manifest.tensors, len(manifest.classes)))
    write_atomic(directory / "label.labels.txt", labels_txt(manifest.classes))
    write_atomic(directory / "dataset_info.json", dataset_info_json(splits, description))
    write_manifest(directory, manifest)
