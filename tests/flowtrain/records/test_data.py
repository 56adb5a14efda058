"""Batches by number: the records they should hold, in part or in whole, and what a damaged record
does to them.
"""

import pickle
import threading
from pathlib import Path

import numpy as np
import pytest

from flowtrain.records.counter import Purpose, host_bits
from flowtrain.records.data import BatchReader, LatentReader, Selection, make_loader, seek
from flowtrain.records.order import batch_records
from schemas.columns import Columns
from schemas.errors import UserError
from schemas.pixels import from_uint8
from tests.flowtrain.damage import flip_byte, shard_paths, write_pixels
from tests.flowtrain.datasets import record_tensors, write_dataset

RECORDS, SHAPE = 20, (4, 4, 4)


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    write_dataset(tmp_path / "latents", records=RECORDS, shards=3, shape=SHAPE)
    return tmp_path / "latents"


@pytest.fixture
def with_flips(tmp_path: Path) -> Path:
    write_dataset(tmp_path / "flips", records=RECORDS, shards=3, shape=SHAPE, flips=True)
    return tmp_path / "flips"


def assert_same(one: Columns, other: Columns) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert one[name].dtype == other[name].dtype
        np.testing.assert_array_equal(one[name], other[name])


def assert_stored(batch: Columns, seed: int, flip: bool) -> None:
    """Every row holds the tensors and the label of its index, of the mirror image where the counter
    says so.
    """
    mirrored = host_bits(seed, Purpose.FLIP, batch["epoch"], batch["index"]) % 2 == 1
    for row, index in enumerate(batch["index"].tolist()):
        expected = record_tensors(index, SHAPE, mirrored=flip and bool(mirrored[row]))
        np.testing.assert_array_equal(batch["mean"][row], expected["mean"])
    np.testing.assert_array_equal(batch["label"], batch["index"] % 3)


def test_a_batch_holds_the_stored_tensors_of_its_records(dataset: Path):
    # straddles two epochs
    batch = BatchReader(LatentReader(dataset), batch_size=8, seed=0, flip="auto")(2)
    np.testing.assert_array_equal(batch["epoch"], [0] * 4 + [1] * 4)
    assert_stored(batch, 0, flip=False)
    assert {name: array.dtype for name, array in batch.items()} == {
        **dict.fromkeys(("index", "epoch", "label"), np.dtype("int32")),
        **dict.fromkeys(("mean", "logvar"), np.dtype("float16")),
    }


def test_mirrored_records_are_chosen_by_the_counter(with_flips: Path):
    reader = LatentReader(with_flips)
    seen = []
    for number in range(5):
        batch = BatchReader(reader, batch_size=8, seed=7, flip="auto")(number)
        assert_stored(batch, 7, flip=True)
        seen.extend(host_bits(7, Purpose.FLIP, batch["epoch"], batch["index"]) % 2 == 1)
    assert 5 < sum(seen) < 35
    assert_stored(BatchReader(reader, batch_size=8, seed=7, flip="never")(0), 7, flip=False)


def test_the_loader_gives_the_batches_in_order_and_seeks(dataset: Path):
    batches = BatchReader(LatentReader(dataset), batch_size=4, seed=0, flip="auto")
    loader = make_loader(batches, 30)
    for number in range(12):
        np.testing.assert_array_equal(next(loader)["index"], batches(number)["index"])
    assert loader.get_state() == {"next_index": 12}
    resumed = make_loader(pickle.loads(pickle.dumps(batches)), 30)
    seek(resumed, 12)
    np.testing.assert_array_equal(next(resumed)["mean"], batches(12)["mean"])


def test_pixels_come_as_floats(tmp_path: Path):
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), np.uint8)
    write_pixels(tmp_path, images)
    batch = BatchReader(LatentReader(tmp_path), batch_size=4, seed=0, flip="never")(0)
    np.testing.assert_array_equal(batch["image"], from_uint8(images[batch["index"]]))


def test_pixels_without_mirrored_encodings_are_mirrored_as_they_are_read(tmp_path: Path):
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), np.uint8)
    write_pixels(tmp_path, images)
    batches = BatchReader(LatentReader(tmp_path), batch_size=40, seed=3, flip="always")
    batch = batches(0)
    mirrored = host_bits(3, Purpose.FLIP, batch["epoch"], batch["index"]) % 2 == 1
    assert 0 < mirrored.sum() < 40
    np.testing.assert_array_equal(
        batches.mirrored(batch["epoch"].astype(np.int64), batch["index"].astype(np.int64)), mirrored
    )
    expected = [
        images[index][:, ::-1] if turned else images[index]
        for index, turned in zip(batch["index"], mirrored, strict=True)
    ]
    np.testing.assert_array_equal(batch["image"], from_uint8(np.stack(expected)))


def test_a_damaged_pixel_record_is_skipped_whichever_way_it_was_to_be_seen(tmp_path: Path):
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), np.uint8)
    write_pixels(tmp_path, images)
    for shard in shard_paths(tmp_path):
        data = shard.read_bytes()
        place = data.find(images[2].tobytes())
        if place >= 0:
            shard.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
    batches = BatchReader(
        LatentReader(tmp_path), batch_size=40, seed=3, flip="always", on_corrupt="skip"
    )
    assert 2 not in batches(0)["index"]
    assert set(batches.damaged) == {2}


def test_batches_of_a_selection_keep_the_indices_of_the_dataset(with_flips: Path):
    selection = Selection.choose(RECORDS, holdout=5, overfit=7)
    batches = BatchReader(
        LatentReader(with_flips), batch_size=8, seed=3, flip="auto", selection=selection
    )
    for number in range(3):
        batch = batches(number)
        epoch, index = batch_records(3, number, 8, selection)
        np.testing.assert_array_equal(batch["index"], index)
        np.testing.assert_array_equal(batch["epoch"], epoch)
        assert set(batch["index"]) <= set(selection.index)
        assert_stored(batch, 3, flip=True)


@pytest.mark.parametrize("on_corrupt", ["stop", "skip"])
def test_rows_of_processes_make_the_batch(with_flips: Path, on_corrupt):
    reader = LatentReader(with_flips)
    options = {"batch_size": 8, "seed": 3, "flip": "auto", "on_corrupt": on_corrupt}
    whole = BatchReader(reader, **options)
    parts = [
        BatchReader(reader, rows=rows, **options)
        for rows in (slice(0, 2), slice(2, 7), slice(7, 8))
    ]
    if on_corrupt == "skip":
        for index in range(6, 10):
            flip_byte(with_flips, index)
    for number in range(6):
        expected, found = whole(number), [part(number) for part in parts]
        assert [len(part["label"]) for part in found] == [2, 5, 1]
        assert_same(
            {name: np.concatenate([part[name] for part in found]) for name in expected}, expected
        )


def test_a_process_reads_no_more_than_its_rows(dataset: Path):
    reader, asked = LatentReader(dataset), []

    class Watched(LatentReader):
        def gather(self, index, mirrored):
            asked.append(index.tolist())
            return super().gather(index, mirrored)

    BatchReader(Watched(dataset), batch_size=8, seed=0, flip="never", rows=slice(2, 5))(1)
    assert asked == [
        BatchReader(reader, batch_size=8, seed=0, flip="never")(1)["index"][2:5].tolist()
    ]


def test_a_damaged_record_stops_with_its_name(dataset: Path):
    flip_byte(dataset, 9)
    batches = BatchReader(LatentReader(dataset), batch_size=RECORDS, seed=0, flip="never")
    with pytest.raises(
        UserError, match=r"00001-of-00003: record 9 of split 'train' is damaged; .*on_corrupt=skip$"
    ):
        batches(0)
    with pytest.raises(UserError, match=r"record 9 of split 'train' is damaged"):
        next(make_loader(batches, 3))


def test_a_damaged_record_is_replaced_by_the_next_intact_one(dataset: Path):
    order = BatchReader(LatentReader(dataset), batch_size=RECORDS, seed=0, flip="never")(0)["index"]
    selection = Selection(np.delete(np.arange(RECORDS), 11))
    for index in (9, 10, 19):
        flip_byte(dataset, index)
    batches = BatchReader(
        LatentReader(dataset), batch_size=RECORDS, seed=0, flip="never", on_corrupt="skip"
    )
    batch = batches(0)
    stand_ins = {9: 11, 10: 11, 19: 0}
    assert batch["index"].tolist() == [stand_ins.get(int(index), int(index)) for index in order]
    assert_stored(batch, 0, flip=False)
    assert list(batches.damaged) == [9, 10, 19]
    assert "00001-of-00003: record 10 of split 'train' is damaged" in batches.damaged[10]
    chosen = BatchReader(
        LatentReader(dataset),
        batch_size=19,
        seed=0,
        flip="never",
        selection=selection,
        on_corrupt="skip",
    )(0)
    assert sorted(chosen["index"]) == sorted([*range(9), *[12, 12], *range(12, 19), 0])
    assert_stored(chosen, 0, flip=False)


def test_only_the_copy_that_is_damaged_is_replaced(with_flips: Path):
    whole = BatchReader(LatentReader(with_flips), batch_size=8, seed=7, flip="auto")
    expected = [whole(number) for number in range(10)]
    flip_byte(with_flips, 9, mirrored=True)
    batches = BatchReader(
        LatentReader(with_flips), batch_size=8, seed=7, flip="auto", on_corrupt="skip"
    )
    replaced = 0
    for number, before in enumerate(expected):
        batch = batches(number)
        mirrored = host_bits(7, Purpose.FLIP, before["epoch"], before["index"]) % 2 == 1
        gone = mirrored & (before["index"] == 9)
        np.testing.assert_array_equal(batch["index"], np.where(gone, 10, before["index"]))
        assert_stored(batch, 7, flip=True)
        replaced += int(gone.sum())
    assert 0 < replaced < 4
    assert list(batches.damaged) == [9]
    assert "split 'train_flip'" in batches.damaged[9]
    flip_byte(with_flips, 9)
    for number in range(10):
        batches(number)
    assert "split 'train'" in batches.damaged[9]  # one line a record, about its own encoding first


def test_what_is_skipped_does_not_depend_on_what_was_read_before(with_flips: Path):
    for index in (3, 4, 5, 12):
        flip_byte(with_flips, index)
        flip_byte(with_flips, index + 4, mirrored=True)

    def batches() -> BatchReader:
        return BatchReader(
            LatentReader(with_flips), batch_size=6, seed=1, flip="auto", on_corrupt="skip"
        )

    straight = batches()
    expected = [straight(number) for number in range(24)]
    for number in reversed(range(24)):  # each in a process that has seen nothing, and backwards
        assert_same(batches()(number), expected[number])
    loader = make_loader(threaded := batches(), 24)
    seek(loader, 5)
    for number in range(5, 24):
        assert_same(next(loader), expected[number])
    assert threaded.damaged.keys() <= straight.damaged.keys() == {3, 4, 5, 7, 8, 9, 12, 16}


def test_many_threads_meet_the_same_damage(with_flips: Path):
    for index in range(8, 12):
        flip_byte(with_flips, index)
    batches = BatchReader(
        LatentReader(with_flips), batch_size=8, seed=1, flip="auto", on_corrupt="skip"
    )
    expected = [batches(number) for number in range(8)]
    shared = BatchReader(
        LatentReader(with_flips), batch_size=8, seed=1, flip="auto", on_corrupt="skip"
    )
    errors = []

    def work(first: int) -> None:
        try:
            for number in range(8):
                assert_same(shared((number + first) % 8), expected[(number + first) % 8])
                assert shared.damaged.keys() <= batches.damaged.keys()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(first,)) for first in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert shared.damaged == batches.damaged


def test_a_dataset_without_an_intact_record_ends(tmp_path: Path):
    write_dataset(tmp_path, records=3, shards=1, shape=SHAPE)
    for index in range(3):
        flip_byte(tmp_path, index)
    batches = BatchReader(
        LatentReader(tmp_path), batch_size=2, seed=0, flip="never", on_corrupt="skip"
    )
    with pytest.raises(
        UserError, match="no record is intact; `flowtrain data verify` says how to mend it"
    ):
        batches(0)
    assert list(batches.damaged) == [0, 1, 2]


def test_a_shard_that_disappears_is_not_skipped(dataset: Path):
    batches = BatchReader(
        LatentReader(dataset), batch_size=RECORDS, seed=0, flip="never", on_corrupt="skip"
    )
    with open(flip_byte(dataset, 9), "r+b") as file:
        file.truncate(1 << 16)
    with pytest.raises(UserError, match="00001-of-00003: shard has 65536 bytes, not"):
        batches(0)
