"""Files with the right checksums that contradict the manifest: their writer was wrong."""

from collections.abc import Iterator
from dataclasses import dataclass

from pipelines.dataset.anywhere import StoredDataset
from schemas.json_text import parse_json
from schemas.manifest import MANIFEST_NAME, REJECTS_NAME, RESULTS_NAME, Manifest
from schemas.storage import paths
from schemas.tfds_metadata import FEATURES_NAME, INFO_NAME, LABELS_NAME


@dataclass(frozen=True)
class Damage:
    """A file that is not what it should be."""

    file: str
    problem: str


def check_agreement(dataset: StoredDataset) -> Iterator[Damage]:
    """The shards' sums, and each file that the manifest lists, against the manifest.

    Raises:
        OSError: a file cannot be read.
    """
    manifest = dataset.manifest
    for split in manifest.splits:
        records = sum(shard.records for shard in manifest.split_shards(split))
        if records != manifest.counts.written:
            yield Damage(
                MANIFEST_NAME, f"the shards of {split} do not add up to the records written"
            )
    listed = {info.name for info in manifest.files}
    for name in [name for name in _AGREEMENT if name in listed]:
        if not _agrees(name, paths.read(dataset.where(name)), manifest):
            yield Damage(name, "does not agree with the manifest")


def _agrees(name: str, data: bytes, manifest: Manifest) -> bool:
    try:
        return _AGREEMENT[name](data, manifest)
    except (ValueError, KeyError, TypeError, AttributeError):
        return False


def _features_agree(data: bytes, manifest: Manifest) -> bool:
    features = parse_json(data)["featuresDict"]["features"]
    tensors = {name: entry["tensor"] for name, entry in features.items() if "tensor" in entry}
    stored = {
        name: (tuple(map(int, tensor["shape"]["dimensions"])), tensor["dtype"])
        for name, tensor in tensors.items()
    }
    classes = int(features["label"]["classLabel"]["numClasses"])
    specs = {name: (spec.shape, spec.dtype) for name, spec in manifest.tensors.items()}
    return stored == specs and classes == len(manifest.classes)


def _info_agrees(data: bytes, manifest: Manifest) -> bool:
    splits = {
        split["name"]: [int(length) for length in split["shardLengths"]]
        for split in parse_json(data)["splits"]
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
        [shard["files"][0]["name"] for shard in map(parse_json, data.splitlines())]
        == [shard.name for shard in manifest.split_shards(manifest.split)]
    ),
}
