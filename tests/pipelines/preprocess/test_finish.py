import hashlib
import math
from pathlib import Path

import pytest

from pipelines.dataset.shard_results import (
    NOT_FINITE,
    ChannelSums,
    ErrorSums,
    Reject,
    ShardFailure,
    ShardResult,
)
from pipelines.preprocess.finish import finish, take_failure
from pipelines.preprocess.index import INDEX_NAME, write_index
from pipelines.preprocess.plan import Plan
from schemas.manifest import MANIFEST_NAME, ShardInfo, read_manifest
from tests.pipelines.running import plan

FAILURE = ".work/run/failure.txt"
SIZE = 100  # bytes of a shard


@pytest.fixture
def task(photos: Path, tmp_path: Path) -> Plan:
    task = plan(photos, tmp_path / "out", shards=3)
    task.build.take()
    write_index(task.directory, f"{task.settings.work}/{INDEX_NAME}", task.index)
    for shard in range(3):
        for name in task.settings.shard_files(shard):
            task.directory.write(name, "x" * SIZE)
    return task


def result(task: Plan, shard: int, records: int = 20) -> ShardResult:
    (name,) = task.settings.shard_files(shard)
    return ShardResult(
        shard=shard,
        items=20,
        files=(ShardInfo(name=name, split="train", records=records, bytes=SIZE, sha256="0"),),
        rejects=(),
        channels=ChannelSums(positions=1, total=(1.0,) * 3, squares=(2.0,) * 3, noise=(0.0,) * 3),
        errors=ErrorSums(),
    )


def test_order_of_arrival_does_not_show(task: Plan) -> None:
    texts = []
    for order in ((0, 1, 2), (2, 0, 1)):
        finish(
            task.directory,
            task.settings,
            0.0,
            0.0,
            FAILURE,
            [result(task, shard) for shard in order],
        )
        texts.append(task.directory.read(MANIFEST_NAME))
    assert texts[0] == texts[1]
    assert [s.name[-14:-9] for s in read_manifest(Path(task.directory.root)).shards] == [
        "00000",
        "00001",
        "00002",
    ]
    assert take_failure(task.directory, FAILURE) is None


@pytest.mark.parametrize("shards", [(0, 1), (0, 1, 1), (0, 1, 2, 2)])
def test_lost_or_doubled_shards_are_noticed(task: Plan, shards: tuple[int, ...]) -> None:
    finish(
        task.directory, task.settings, 0.0, 0.0, FAILURE, [result(task, shard) for shard in shards]
    )
    assert "of 3 shards came back" in (take_failure(task.directory, FAILURE) or "")
    assert not task.directory.exists(MANIFEST_NAME)
    assert "cannot finish" in (take_failure(task.directory, FAILURE) or "")


@pytest.mark.parametrize("name", ["rejects.jsonl", "shards.jsonl", "features.json", MANIFEST_NAME])
def test_file_that_cannot_be_written_is_told(task: Plan, name: str) -> None:
    Path(task.directory.root, name).mkdir(parents=True)
    finish(
        task.directory,
        task.settings,
        0.0,
        0.0,
        FAILURE,
        [result(task, shard) for shard in range(3)],
    )
    assert "(Is a directory); mend that or choose another directory, then repeat" in (
        take_failure(task.directory, FAILURE) or ""
    )


def test_full_disk_leaves_no_word_and_is_told_all_the_same(task: Plan) -> None:
    Path(task.directory.root, FAILURE).parent.touch()  # nothing can be written below it
    Path(task.directory.root, "rejects.jsonl").mkdir()
    finish(
        task.directory,
        task.settings,
        0.0,
        0.0,
        FAILURE,
        [result(task, shard) for shard in range(3)],
    )
    assert "make room and repeat the command" in (take_failure(task.directory, FAILURE) or "")


def test_lost_records_are_our_fault(task: Plan) -> None:
    finish(
        task.directory,
        task.settings,
        0.0,
        0.0,
        FAILURE,
        [result(task, 0), result(task, 1, 19), result(task, 2)],
    )
    assert "shard 1 accounts for 19 of its 20 images" in (
        take_failure(task.directory, FAILURE) or ""
    )
    assert not task.directory.exists(MANIFEST_NAME)


@pytest.mark.parametrize("content", [None, b"longer"])
def test_shards_that_are_not_there_any_more_are_noticed(task: Plan, content: bytes | None) -> None:
    (name,) = task.settings.shard_files(1)
    task.directory.remove(name)
    if content is not None:
        task.directory.write(name, content)
    finish(
        task.directory,
        task.settings,
        0.0,
        0.0,
        FAILURE,
        [result(task, shard) for shard in range(3)],
    )
    assert f"{name} was lost or replaced meanwhile; repeat" in (
        take_failure(task.directory, FAILURE) or ""
    )
    assert not task.directory.exists(MANIFEST_NAME)


def test_failures_of_shards_are_told_once(task: Plan) -> None:
    failures = [ShardFailure(shard=shard, message=f"disk {shard} is gone") for shard in (2, 1)]
    finish(task.directory, task.settings, 0.0, 0.0, FAILURE, [result(task, 0), *failures])
    assert take_failure(task.directory, FAILURE) == "disk 1 is gone (and 1 more shard failed)"
    assert not task.directory.exists(MANIFEST_NAME)


def test_latents_that_are_not_finite_fail_the_build_whatever_the_thresholds(task: Plan) -> None:
    reject = Reject(
        key="bee/7.png", reason="its latent is not finite in float16", exception=NOT_FINITE, size=9
    )
    broken = result(task, 1, 19).model_copy(update={"rejects": (reject,)})
    finish(
        task.directory, task.settings, 1.0, 0.0, FAILURE, [result(task, 0), broken, result(task, 2)]
    )
    assert '1 of 60 images have latents that are not finite in float16 (first: "bee/7.png")' in (
        take_failure(task.directory, FAILURE) or ""
    )
    assert not task.directory.exists(MANIFEST_NAME)
    assert b"bee/7.png" in task.directory.read("rejects.jsonl")


def test_an_overflow_in_a_decoder_is_a_bad_image_and_no_bad_latent(task: Plan) -> None:
    reject = Reject(
        key="bee/7.png", reason="cannot be decoded", exception=OverflowError.__name__, size=9
    )
    bad = result(task, 1, 19).model_copy(update={"rejects": (reject,)})
    finish(
        task.directory, task.settings, 0.02, 0.0, FAILURE, [result(task, 0), bad, result(task, 2)]
    )
    assert take_failure(task.directory, FAILURE) is None
    assert read_manifest(Path(task.directory.root)).counts.rejected == 1


def test_statistics_that_are_not_finite_fail_the_build(task: Plan) -> None:
    sums = ChannelSums(
        positions=1, total=(1.0,) * 3, squares=(2.0,) * 3, noise=(0.0, math.inf, 0.0)
    )
    wild = result(task, 2).model_copy(update={"channels": sums})
    finish(
        task.directory, task.settings, 1.0, 0.0, FAILURE, [result(task, 0), result(task, 1), wild]
    )
    assert "the statistics of the latents are not finite" in (
        take_failure(task.directory, FAILURE) or ""
    )
    assert not task.directory.exists(MANIFEST_NAME)


def test_manifest_holds_the_checksum_of_every_other_file(task: Plan) -> None:
    finish(
        task.directory,
        task.settings,
        0.0,
        0.0,
        FAILURE,
        [result(task, shard) for shard in range(3)],
    )
    manifest = read_manifest(Path(task.directory.root))
    listed = {info.name: (info.bytes, info.sha256) for info in manifest.files}
    found = {name: task.directory.read(name) for name in task.directory.names() if name != ".work"}
    shards = {shard.name for shard in manifest.shards}
    assert listed.keys() == found.keys() - {MANIFEST_NAME, *manifest.sealed, *shards}
    assert manifest.sealed == ("settings.json",)
    for name, facts in listed.items():
        assert facts == (len(found[name]), hashlib.sha256(found[name]).hexdigest())
