"""Records from shards: what was written, in any order, and a name for whatever is damaged."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from flowtrain.records import reader as module
from flowtrain.records.cache import open_records
from flowtrain.records.reader import DamagedRecordsError, LatentReader
from schemas.errors import UserError
from schemas.manifest import read_manifest, write_manifest
from schemas.tfds_metadata import shard_name
from tests.flowtrain.damage import flip_byte, shard_paths
from tests.flowtrain.datasets import record_tensors, write_dataset

RECORDS, SHAPE = 20, (4, 4, 4)


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    write_dataset(tmp_path / "latents", records=RECORDS, shards=3, shape=SHAPE, flips=True)
    return tmp_path / "latents"


def test_records_come_in_the_order_asked_for_from_both_splits(dataset: Path):
    index = np.array([19, 3, 3, 0, 7, 6, 12, 3])
    mirrored = np.array([1, 0, 1, 1, 0, 0, 1, 0], np.bool_)
    reader = LatentReader(dataset)
    for one in (reader, pickle.loads(pickle.dumps(reader))):
        found = one.gather(index, mirrored)
        for row, (place, flipped) in enumerate(zip(index, mirrored, strict=True)):
            expected = record_tensors(int(place), SHAPE, mirrored=bool(flipped))
            for name in ("mean", "logvar"):
                np.testing.assert_array_equal(found[name][row], expected[name])
        assert found["label"].tolist() == [place % 3 for place in index]
    assert [record.key for record in reader.read([19, 0, 7])] == [
        "item-0019",
        "item-0000",
        "item-0007",
    ]
    np.testing.assert_array_equal(
        reader.read([4], mirrored=True)[0].tensors["mean"],
        record_tensors(4, SHAPE, mirrored=True)["mean"],
    )


def test_shards_without_records_are_no_trouble(tmp_path: Path):
    write_dataset(tmp_path, records=4, shards=9, shape=SHAPE)
    reader = LatentReader(tmp_path)
    assert 0 in [shard.records for shard in reader.manifest.shards]
    assert reader.gather(np.arange(4), np.zeros(4, np.bool_))["label"].tolist() == [0, 1, 2, 0]


@pytest.mark.parametrize("index", [-1, RECORDS])
def test_records_that_are_none_are_not_counted_from_the_end(dataset: Path, index: int):
    with pytest.raises(IndexError):
        LatentReader(dataset).gather(np.array([0, index]), np.zeros(2, np.bool_))


def test_a_missing_shard_is_named(dataset: Path):
    shard_paths(dataset)[1].unlink()
    with pytest.raises(
        UserError, match=r"00001-of-00003: shard is missing; repeat the command in manifest.json"
    ):
        LatentReader(dataset)


def test_a_truncated_shard_is_named(dataset: Path):
    shard = shard_paths(dataset)[1]
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"00001-of-00003: shard has \d+ bytes, not \d+"):
        LatentReader(dataset)


def test_a_shard_of_zeros_is_named(dataset: Path):
    shard = shard_paths(dataset)[1]
    shard.write_bytes(bytes(shard.stat().st_size))
    with pytest.raises(UserError, match="00001-of-00003: shard holds 0 readable records, not"):
        LatentReader(dataset)


def test_a_manifest_that_counts_other_records_is_refused(dataset: Path):
    manifest = read_manifest(dataset)
    main = tuple(shard for shard in manifest.shards if shard.split == "train")
    write_manifest(dataset, manifest.model_copy(update={"shards": (*main, manifest.shards[3])}))
    for cache in ("none", "disk", "ram"):
        with pytest.raises(
            UserError, match=r"latents: split 'train_flip' holds 7 records, not 20; delete it and"
        ):
            open_records(dataset, cache, dataset)


def test_a_damaged_record_is_named_when_it_is_read(dataset: Path):
    path = flip_byte(dataset, 9)  # the third record of the second shard
    reader = LatentReader(dataset)
    assert reader.read([0, 19])[1].key == "item-0019"
    assert reader.read([9], mirrored=True)[0].key == "item-0009"
    with pytest.raises(DamagedRecordsError) as caught:
        reader.read([0, 9, 19])
    assert path.name == shard_name("train", 1, 3)
    assert str(caught.value) == (
        f"{path}: record 9 of split 'train' is damaged; delete it and repeat the command in "
        "manifest.json (OUT is the directory that holds it), or train without it with --set "
        "train.on_corrupt=skip"
    )


def test_all_damage_among_what_was_asked_for_is_told(dataset: Path):
    flip_byte(dataset, 9)
    flip_byte(dataset, 4)
    mirrored = flip_byte(dataset, 4, mirrored=True)
    with pytest.raises(DamagedRecordsError) as caught:
        LatentReader(dataset).gather(np.array([4, 3, 9, 4]), np.array([0, 0, 0, 1], np.bool_))
    assert list(caught.value.damaged) == [(4, False), (9, False), (4, True)]
    assert f"{mirrored}: record 4 of split 'train_flip' is damaged" in caught.value.damaged[4, True]


def test_any_flipped_bit_is_noticed_or_does_no_harm(tmp_path: Path):
    """ArrayRecord has checksums of its own: nothing else than what was written is ever handed
    out.
    """
    write_dataset(tmp_path, records=6, shards=1, shape=(16, 16, 4))
    (path,) = shard_paths(tmp_path)
    whole = path.read_bytes()
    expected = LatentReader(tmp_path).gather(np.arange(6), np.zeros(6, np.bool_))
    rng = np.random.default_rng(0)
    first, last = whole.find(b"item-0000") - 200, whole.find(b"item-0005") + 2200
    outcomes = []
    for place in [
        *range(24),
        *rng.integers(first, last, 120).tolist(),
        *range(len(whole) - (1 << 16), len(whole), 1500),
    ]:
        changed = bytearray(whole)
        changed[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(bytes(changed))
        try:
            reader = LatentReader(tmp_path)
        except UserError:
            outcomes.append("shard")
            continue
        for index in range(6):
            try:
                found = reader.gather(np.array([index]), np.zeros(1, np.bool_))
            except DamagedRecordsError:
                outcomes.append("record")
            else:
                for name, column in found.items():
                    np.testing.assert_array_equal(column[0], expected[name][index])
    assert {"shard", "record"} <= set(outcomes)


def test_a_disk_that_fails_is_no_damage(dataset: Path):
    reader = LatentReader(dataset)
    path = flip_byte(dataset, 9)
    with open(path, "r+b") as file:
        file.truncate(1 << 16)
    with pytest.raises(UserError, match="00001-of-00003: shard has 65536 bytes, not") as caught:
        reader.read([9])
    assert not isinstance(caught.value, DamagedRecordsError)
    path.unlink()


def test_a_record_that_was_written_wrongly_is_no_damage(dataset: Path):
    """Skipping would hide that the whole dataset is wrong."""
    manifest = read_manifest(dataset)
    specs = {
        name: spec.model_copy(update={"shape": (2, 2, 4)})
        for name, spec in manifest.tensors.items()
    }
    changes = {"tensors": specs, "resolution": manifest.resolution // 2}
    write_manifest(dataset, manifest.model_copy(update=changes))
    with pytest.raises(
        UserError, match=r"the shard is whole, but a record cannot be read \(feature 'mean' is"
    ) as caught:
        LatentReader(dataset).gather(np.arange(2), np.zeros(2, np.bool_))
    assert not isinstance(caught.value, DamagedRecordsError)


def test_trouble_that_passes_is_told_as_such(dataset: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*arguments: object) -> None:
        raise RuntimeError("a moment")

    reader = LatentReader(dataset)
    monkeypatch.setattr(module, "decode_columns", fail)
    with pytest.raises(
        UserError, match=r"latents: could not be read for a moment \(a moment\); repeat the command"
    ):
        reader.gather(np.arange(2), np.zeros(2, np.bool_))


def test_a_dataset_without_manifest_or_from_the_future_is_refused(dataset: Path):
    manifest = dataset / "manifest.json"
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(content | {"schema_version": 99}))
    with pytest.raises(UserError, match="schema version 99 is newer"):
        LatentReader(dataset)
    manifest.unlink()
    with pytest.raises(UserError, match="not a finished dataset"):
        LatentReader(dataset)


OPEN = """
import resource, sys
from pathlib import Path
from flowtrain.records import reader
from schemas.errors import UserError
reader._OTHER_FILES = 40
for hard in (100, 99):
    resource.setrlimit(resource.RLIMIT_NOFILE, (45, hard))
    try:
        print(len(reader.LatentReader(Path(sys.argv[1])).read(range(60))))
    except UserError as error:
        print(error)
"""


def test_more_shards_than_files_that_may_be_open(tmp_path: Path):
    write_dataset(tmp_path, records=60, shards=60, shape=(1, 1, 1))
    command = [sys.executable, "-c", OPEN, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert result.stdout.splitlines() == [
        "60",
        f"{tmp_path}: 60 shards are too many for a process that may open 99 files; raise the limit "
        "(ulimit -n 100) or use --cache disk",
    ]
