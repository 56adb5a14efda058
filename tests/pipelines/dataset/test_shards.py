from pathlib import Path

import pytest

from pipelines.dataset.shards import ShardWriter, count_records, read_shard, write_shard
from schemas.errors import UserError
from schemas.files import sha256_file

# more than one chunk
RECORDS = [bytes([number]) * (number * 37 % 211 + 1) for number in range(50)] * 12


def test_round_trip_with_ranges(tmp_path: Path) -> None:
    path = tmp_path / "a.array_record"
    written = write_shard(path, iter(RECORDS))
    assert written == (len(RECORDS), path.stat().st_size, sha256_file(path))
    assert list(read_shard(path)) == RECORDS
    assert list(read_shard(path, 250, 300)) == RECORDS[250:300]
    assert list(read_shard(path, 590, 9999)) == RECORDS[590:]
    assert count_records(path) == len(RECORDS)


def test_same_records_same_bytes(tmp_path: Path) -> None:
    assert write_shard(tmp_path / "a", RECORDS) == write_shard(tmp_path / "b", RECORDS)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_empty_shard_is_a_shard(tmp_path: Path) -> None:
    assert write_shard(tmp_path / "a", []).records == 0
    assert list(read_shard(tmp_path / "a")) == []


def test_failing_records_leave_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_shard(path, RECORDS[:3])

    def broken() -> list[bytes]:
        raise KeyError("no more")

    with pytest.raises(KeyError):
        write_shard(path, (record for records in (RECORDS, broken()) for record in records))
    assert list(read_shard(path)) == RECORDS[:3]
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


def test_writer_counts(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "a") as writer:
        writer.write(b"x")
        writer.write(b"y")
        assert writer.close().records == 2


@pytest.mark.parametrize("keep", [0, 10, 65536, -1])
def test_truncated_shard_is_named(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "latents-train.array_record-00001-of-00004"
    write_shard(path, RECORDS)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match="00001-of-00004: the shard is truncated or damaged"):
        list(read_shard(path))
    with pytest.raises(UserError, match="truncated"):
        count_records(path)


def test_flipped_byte_is_noticed_when_its_record_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_shard(path, RECORDS)
    data = bytearray(path.read_bytes())
    position = data.index(RECORDS[40][:20])
    data[position] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="damaged"):
        list(read_shard(path))


def test_missing_shard_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere: the shard is missing"):
        list(read_shard(tmp_path / "nowhere"))
