"""Batches by index: which records, in which order, and what happens to a damaged dataset."""

import json
from pathlib import Path

import numpy as np
import pytest

from flowtrain.counter import Purpose, host_bits
from flowtrain.data import BatchReader, LatentReader, batch_records, epoch_order, make_loader, seek
from schemas.errors import UserError
from schemas.layout import Layout, layout_tensors
from schemas.manifest import write_manifest
from schemas.pixels import from_uint8
from schemas.record import encode_record
from tests.flowtrain.datasets import record_tensors, write_dataset

RECORDS, SHAPE = 20, (4, 4, 4)


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    write_dataset(tmp_path / "latents", records=RECORDS, shards=3, shape=SHAPE)
    return tmp_path / "latents"


def test_every_record_is_seen_once_an_epoch_in_another_order():
    stream = [batch_records(0, batch, 8, RECORDS) for batch in range(10)]
    epoch, index = (np.concatenate(parts) for parts in zip(*stream, strict=True))
    orders = [tuple(index[epoch == number]) for number in range(4)]
    assert all(sorted(order) == list(range(RECORDS)) for order in orders)
    assert len(set(orders)) == 4
    assert (epoch_order(1, 0, RECORDS) != epoch_order(0, 0, RECORDS)).any()


def test_a_batch_holds_the_stored_tensors_of_its_records(dataset: Path):
    batch = BatchReader(LatentReader(dataset), batch_size=8, seed=0, flip=True)(2)  # straddles two epochs
    np.testing.assert_array_equal(batch["epoch"], [0] * 4 + [1] * 4)
    for row, index in enumerate(batch["index"]):
        np.testing.assert_array_equal(batch["mean"][row], record_tensors(int(index), SHAPE)["mean"])
    np.testing.assert_array_equal(batch["label"], batch["index"] % 3)
    assert {name: array.dtype for name, array in batch.items()} == {
        **dict.fromkeys(("index", "epoch", "label"), np.dtype("int32")),
        **dict.fromkeys(("mean", "logvar"), np.dtype("float16")),
    }


def test_mirrored_records_are_chosen_by_the_counter(tmp_path: Path):
    write_dataset(tmp_path, records=RECORDS, shards=3, shape=SHAPE, flips=True)
    reader = LatentReader(tmp_path)
    seen = []
    for number in range(5):
        batch = BatchReader(reader, batch_size=8, seed=7, flip=True)(number)
        mirrored = host_bits(7, Purpose.FLIP, batch["epoch"], batch["index"]) % 2 == 1
        seen.extend(mirrored)
        for row, index in enumerate(batch["index"]):
            expected = record_tensors(int(index), SHAPE, mirrored=bool(mirrored[row]))["mean"]
            np.testing.assert_array_equal(batch["mean"][row], expected)
    assert 5 < sum(seen) < 35
    plain = BatchReader(reader, batch_size=8, seed=7, flip=False)(0)
    np.testing.assert_array_equal(plain["mean"][0], record_tensors(int(plain["index"][0]), SHAPE)["mean"])


def test_the_loader_gives_the_batches_in_order_and_seeks(dataset: Path):
    batches = BatchReader(LatentReader(dataset), batch_size=4, seed=0, flip=True)
    loader = make_loader(batches, 30)
    for number in range(12):
        np.testing.assert_array_equal(next(loader)["index"], batches(number)["index"])
    assert loader.get_state() == {"next_index": 12}
    resumed = make_loader(batches, 30)
    seek(resumed, 12)
    np.testing.assert_array_equal(next(resumed)["mean"], batches(12)["mean"])


def test_pixels_come_as_floats(tmp_path: Path):
    from array_record.python.array_record_module import ArrayRecordWriter

    manifest = write_dataset(tmp_path, records=4, shards=1, shape=(4, 4, 3))
    specs = layout_tensors(Layout.IMAGE, (4, 4, 3))
    images = np.random.default_rng(0).integers(0, 256, (4, 4, 4, 3), np.uint8)
    shard = manifest.shards[0]
    writer = ArrayRecordWriter(str(tmp_path / shard.name), "group_size:1")
    for index, image in enumerate(images):
        writer.write(encode_record(str(index), 0, {"image": image}, specs))
    writer.close()
    size = (tmp_path / shard.name).stat().st_size
    changes = {"layout": Layout.IMAGE, "tensors": specs, "shards": (shard.model_copy(update={"bytes": size}),)}
    write_manifest(tmp_path, manifest.model_copy(update=changes))
    batch = BatchReader(LatentReader(tmp_path), batch_size=4, seed=0, flip=False)(0)
    np.testing.assert_array_equal(batch["image"], from_uint8(images[batch["index"]]))


def _shard(dataset: Path) -> Path:
    return sorted(dataset.glob("*.array_record-*"))[1]


def test_a_missing_shard_is_named(dataset: Path):
    _shard(dataset).unlink()
    with pytest.raises(UserError, match=r"00001-of-00003: shard is missing; repeat the command in manifest.json"):
        LatentReader(dataset)


def test_a_truncated_shard_is_named(dataset: Path):
    shard = _shard(dataset)
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"00001-of-00003: shard has \d+ bytes, not \d+"):
        LatentReader(dataset)


def test_a_shard_of_zeros_is_named(dataset: Path):
    shard = _shard(dataset)
    shard.write_bytes(bytes(shard.stat().st_size))
    with pytest.raises(UserError, match="00001-of-00003: shard holds 0 readable records, not"):
        LatentReader(dataset)


def test_a_damaged_record_is_named_when_it_is_read(dataset: Path):
    shard = _shard(dataset)
    data = bytearray(shard.read_bytes())
    place = data.find(b"item-0009")  # the third record of the second shard
    data[place : place + 4] = b"ITEM"
    shard.write_bytes(bytes(data))
    reader = LatentReader(dataset)
    assert reader.read([0, 19])[1].key == "item-0019"
    with pytest.raises(UserError, match=r"00001-of-00003: record 9 of split 'train' is damaged"):
        reader.read([0, 9, 19])


def test_a_dataset_without_manifest_or_from_the_future_is_refused(dataset: Path):
    manifest = dataset / "manifest.json"
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(content | {"schema_version": 99}))
    with pytest.raises(UserError, match="schema version 99 is newer"):
        LatentReader(dataset)
    manifest.unlink()
    with pytest.raises(UserError, match="not a finished dataset"):
        LatentReader(dataset)
