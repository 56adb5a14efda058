"""Rows are the records: layout, order, and shards that are not what the manifest says."""

from pathlib import Path

import numpy as np
import pytest

from flowtrain.records.reader import LatentReader
from flowtrain.records.rows import RowReader, cache_bytes, read_rows, row_count, row_dtype
from schemas.errors import UserError
from schemas.manifest import Manifest, read_manifest, write_manifest
from tests.flowtrain.damage import flip_byte, shard_paths, write_pixels
from tests.flowtrain.datasets import write_dataset

SHAPE = (4, 4, 4)


def all_rows(directory: Path, manifest: Manifest) -> np.ndarray:
    return np.concatenate(list(read_rows(directory, manifest, lambda records: None)))


def test_rows_are_flat_and_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("flowtrain.records.rows._CHUNK", 4)
    manifest = write_dataset(tmp_path, records=20, shards=3, shape=SHAPE, flips=True)
    told: list[int] = []
    rows = np.concatenate(list(read_rows(tmp_path, manifest, told.append)))
    assert row_dtype(manifest.tensors).itemsize == 2 * 64 * 2 + 4
    assert (
        (len(rows), rows.nbytes) == (row_count(manifest), cache_bytes(manifest)) == (40, 40 * 260)
    )
    assert sum(told) == 40
    assert set(told) == {4, 2, 3}  # shards of 7, 6 and 7
    reader = LatentReader(tmp_path)
    for half, mirrored in ((rows[:20], False), (rows[20:], True)):
        expected = reader.gather(np.arange(20), np.full(20, mirrored))
        for name, column in expected.items():
            np.testing.assert_array_equal(half[name], column)


def test_odd_rows_are_no_trouble(tmp_path: Path):
    """A row of 75 bytes and a label: nothing is aligned."""
    images = np.random.default_rng(0).integers(0, 256, (7, 5, 5, 3), np.uint8)
    manifest = write_pixels(tmp_path, images, images[:, :, ::-1])
    reader = RowReader(tmp_path, manifest, all_rows(tmp_path, manifest))
    index, mirrored = np.array([6, 0, 3, 3]), np.array([0, 1, 1, 0], np.bool_)
    found = reader.gather(index, mirrored)
    expected = np.where(mirrored[:, None, None, None], images[index][:, :, ::-1], images[index])
    np.testing.assert_array_equal(found["image"], expected)
    assert found["label"].tolist() == [0, 0, 0, 0]
    assert (found["label"].dtype, found["image"].dtype) == (np.int32, np.uint8)
    assert all(column.flags.c_contiguous and column.flags.writeable for column in found.values())


def test_shards_without_records_are_no_trouble(tmp_path: Path):
    manifest = write_dataset(tmp_path, records=4, shards=9, shape=SHAPE)
    assert all_rows(tmp_path, manifest)["label"].tolist() == [0, 1, 2, 0]


@pytest.mark.parametrize("index", [-1, 20])
def test_records_that_are_none_are_not_taken_from_the_other_split(tmp_path: Path, index: int):
    manifest = write_dataset(tmp_path, records=20, shards=1, shape=SHAPE, flips=True)
    with pytest.raises(IndexError):
        RowReader(tmp_path, manifest, all_rows(tmp_path, manifest)).gather(
            np.array([index]), np.zeros(1, np.bool_)
        )


def test_a_shard_that_is_damaged_missing_or_truncated_is_named(tmp_path: Path):
    manifest = write_dataset(tmp_path, records=20, shards=3, shape=SHAPE, flips=True)
    path = flip_byte(tmp_path, 9, mirrored=True)
    with pytest.raises(UserError) as caught:
        all_rows(tmp_path, manifest)
    assert str(caught.value) == (
        f"{path}: the shard is damaged (its bytes are not those of its checksum); delete it and "
        "repeat the command in manifest.json (OUT is the directory that holds it), or train "
        "without its damaged records with --cache none --set train.on_corrupt=skip"
    )
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"train_flip.*00001-of-00003: shard has \d+ bytes, not"):
        all_rows(tmp_path, manifest)
    path.unlink()
    with pytest.raises(UserError, match=r"train_flip.*00001-of-00003: shard is missing"):
        all_rows(tmp_path, manifest)


def test_a_writer_that_was_wrong_is_told(tmp_path: Path):
    write_dataset(tmp_path, records=20, shards=2, shape=SHAPE)
    manifest = read_manifest(tmp_path)
    first, second = manifest.shards
    wrong = manifest.model_copy(
        update={"shards": (first.model_copy(update={"records": 9}), second)}
    )
    write_manifest(tmp_path, wrong)
    with pytest.raises(
        UserError,
        match=r"00000-of-00002: the shard does not fit the manifest \(10 records instead of 9\)",
    ):
        all_rows(tmp_path, wrong)
    assert len(shard_paths(tmp_path)) == 2
