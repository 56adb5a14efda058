from pathlib import Path

import pytest

from pipelines.finish import finish, forget_failure, read_failure
from pipelines.plan import Plan
from pipelines.results import ChannelSums, ErrorSums, ShardFailure, ShardResult
from pipelines.storage import WORK
from schemas.manifest import MANIFEST_NAME, ShardInfo, read_manifest
from tests.pipelines.running import plan


@pytest.fixture
def task(photos: Path, tmp_path: Path) -> Plan:
    return plan(photos, tmp_path / "out", shards=3)


def result(task: Plan, shard: int, records: int = 20) -> ShardResult:
    (name,) = task.settings.shard_files(shard)
    return ShardResult(
        shard=shard,
        items=20,
        files=(ShardInfo(name=name, split="train", records=records, bytes=1, sha256="0"),),
        rejects=(),
        channels=ChannelSums(positions=1, total=(1.0,) * 3, squares=(2.0,) * 3, noise=(0.0,) * 3),
        errors=ErrorSums(),
    )


def test_order_of_arrival_does_not_show(task: Plan) -> None:
    texts = []
    for order in ((0, 1, 2), (2, 0, 1)):
        finish(task.directory, task.settings, 0.0, 0.0, [result(task, shard) for shard in order])
        texts.append(task.directory.read(MANIFEST_NAME))
    assert texts[0] == texts[1]
    assert [s.name[-14:-9] for s in read_manifest(task.directory.local()).shards] == ["00000", "00001", "00002"]
    assert read_failure(task.directory) is None


@pytest.mark.parametrize("shards", [(0, 1), (0, 1, 1), (0, 1, 2, 2)])
def test_lost_or_doubled_shards_are_noticed(task: Plan, shards: tuple[int, ...]) -> None:
    finish(task.directory, task.settings, 0.0, 0.0, [result(task, shard) for shard in shards])
    assert "of 3 shards came back" in (read_failure(task.directory) or "")
    assert not task.directory.exists(MANIFEST_NAME)
    forget_failure(task.directory)
    assert "cannot finish" in (read_failure(task.directory) or "")


@pytest.mark.parametrize("name", ["rejects.jsonl", "shards.jsonl", "features.json", MANIFEST_NAME])
def test_file_that_cannot_be_written_is_told(task: Plan, name: str) -> None:
    task.directory.local(name).mkdir(parents=True)
    finish(task.directory, task.settings, 0.0, 0.0, [result(task, shard) for shard in range(3)])
    assert "(Is a directory); make room and repeat the command" in (read_failure(task.directory) or "")


def test_full_disk_leaves_no_word_and_is_told_all_the_same(task: Plan) -> None:
    task.directory.local().mkdir(parents=True)
    task.directory.local(WORK).touch()  # nothing can be written below it
    task.directory.local("rejects.jsonl").mkdir()
    finish(task.directory, task.settings, 0.0, 0.0, [result(task, shard) for shard in range(3)])
    assert "make room and repeat the command" in (read_failure(task.directory) or "")


def test_lost_records_are_our_fault(task: Plan) -> None:
    with pytest.raises(RuntimeError, match="shard 1 accounts for"):
        finish(task.directory, task.settings, 0.0, 0.0, [result(task, 0), result(task, 1, 19), result(task, 2)])


def test_failures_of_shards_are_told_once(task: Plan) -> None:
    failures = [ShardFailure(shard=shard, message=f"disk {shard} is gone") for shard in (2, 1)]
    finish(task.directory, task.settings, 0.0, 0.0, [result(task, 0), *failures])
    assert read_failure(task.directory) == "disk 1 is gone (and 1 more shard failed)"
    assert not task.directory.exists(MANIFEST_NAME)
