from pathlib import Path

import numpy as np
import pytest

from pipelines.dataset.finished import LatentDataset, check_shards, dataset_whole, finish_dataset
from pipelines.dataset.shards import write_shard
from schemas.errors import UserError
from schemas.layout import Layout, layout_tensors
from schemas.manifest import (
    MANIFEST_NAME,
    ChannelStatistics,
    Counts,
    Manifest,
    ShardInfo,
    SourceInfo,
)
from schemas.record import encode_record
from schemas.storage.directory import Directory
from schemas.tfds_metadata import shard_name

SPECS = layout_tensors(Layout.LATENT, (2, 2, 1))
LENGTHS = (5, 0, 4)


def value(number: int) -> np.ndarray:
    return np.full((2, 2, 1), number, np.float16)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Nine records in three shards, one of them empty."""
    shards = []
    number = 0
    for index, length in enumerate(LENGTHS):
        name = shard_name("train", index, len(LENGTHS))
        records = [
            encode_record(f"k{n}", n % 2, {"latent": value(n)}, SPECS)
            for n in range(number, number + length)
        ]
        shards.append(
            ShardInfo(name=name, split="train", **write_shard(tmp_path / name, records)._asdict())
        )
        number += length
    manifest = Manifest(
        layout=Layout.LATENT,
        split="train",
        resolution=2,
        crop="none",
        tensors=SPECS,
        classes=("a", "b"),
        source=SourceInfo(descriptor="test", split="train", digest="0"),
        counts=Counts(source=9, written=9, rejected=0, duplicate=0),
        channels=ChannelStatistics(mean=(0.0,), std=(1.0,)),
        shards=tuple(shards),
        seed=0,
        command="none",
        versions={},
    )
    finish_dataset(Directory(str(tmp_path)), manifest)
    return tmp_path


def test_records_in_order_and_in_ranges(directory: Path) -> None:
    dataset = LatentDataset(directory)
    assert len(dataset) == 9
    assert [record.key for record in dataset.records()] == [f"k{n}" for n in range(9)]
    for start, stop in ((0, 3), (4, 6), (5, 9), (7, 99), (3, 3)):
        keys = [record.key for record in dataset.records("train", start, stop)]
        assert keys == [f"k{n}" for n in range(start, min(stop, 9))]
    record = next(dataset.records(start=6))
    assert record.label == 0
    np.testing.assert_array_equal(record.tensors["latent"], value(6))


def test_unknown_split_is_named(directory: Path) -> None:
    with pytest.raises(UserError, match="no split 'test'; it has train"):
        next(LatentDataset(directory).records("test"))


def test_no_manifest_no_dataset(directory: Path) -> None:
    (directory / MANIFEST_NAME).unlink()
    with pytest.raises(UserError, match="not a finished dataset"):
        LatentDataset(directory)


@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_missing_or_truncated_shard_is_named(directory: Path, damage: str) -> None:
    manifest = LatentDataset(directory).manifest
    path = directory / manifest.shards[2].name
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1])
    assert not dataset_whole(str(directory), manifest)
    with pytest.raises(UserError, match="00002-of-00003: the shard"):
        check_shards(directory, manifest)
    with pytest.raises(UserError, match="00002-of-00003: the shard"):
        LatentDataset(directory)


def test_records_of_another_layout_are_named(directory: Path) -> None:
    dataset = LatentDataset(directory)
    name = dataset.manifest.shards[0].name
    write_shard(directory / name, [b"no example"] * 5)
    with pytest.raises(
        UserError,
        match=r"00000-of-00003: a record does not fit .*; delete it and repeat the command",
    ):
        list(dataset.records())


def test_a_missing_or_cut_file_of_any_kind_makes_a_dataset_not_whole(directory: Path) -> None:
    manifest = LatentDataset(directory).manifest
    assert dataset_whole(str(directory), manifest)
    assert {info.name for info in manifest.files} == {
        "README.md",
        "dataset_info.json",
        "features.json",
        "label.labels.txt",
    }
    for info in manifest.files:
        data = (directory / info.name).read_bytes()
        (directory / info.name).write_bytes(data[:-1])
        assert not dataset_whole(str(directory), manifest)
        (directory / info.name).unlink()
        assert not dataset_whole(str(directory), manifest)
        (directory / info.name).write_bytes(data)
    assert dataset_whole(str(directory), manifest)
    assert not dataset_whole(
        str(directory), manifest.model_copy(update={"sealed": ("settings.json",)})
    )
