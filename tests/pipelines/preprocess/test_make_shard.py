import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipelines.dataset.shard_results import NOT_FINITE, ShardFailure, ShardResult
from pipelines.dataset.shards import read_shard
from pipelines.encoders.encode import PixelEncoder
from pipelines.preprocess.identity import dataset_build
from pipelines.preprocess.index import INDEX_NAME, write_index
from pipelines.preprocess.make_shard import (
    MAX_DECODERS,
    RECONSTRUCTED,
    REMOTE_READERS,
    Slice,
    make_shard,
    reader_threads,
    reconstruction_quota,
)
from pipelines.preprocess.pipeline import make_slices
from pipelines.preprocess.plan import Plan
from pipelines.sources import Item, Picture
from pipelines.sources.folder import FolderSource
from pipelines.sources.options import SourceOptions
from schemas.manifest import SETTINGS_NAME
from schemas.record import decode_record
from tests.pipelines.running import plan


class Probe:
    """An encoder whose latent tells the pixel it came from, and that fails on very bright
    images.
    """

    devices = 1
    decodes = True

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def start(self, pixels: NDArray[np.uint8]) -> Callable[[], dict[str, NDArray[Any]]]:
        self.shapes.append(pixels.shape)
        corner = pixels[:, :8, :8, :1].astype(np.float16)
        corner[corner[:, 0, 0, 0] > 200] = np.inf
        return lambda: {
            "mean": np.repeat(corner, 4, -1),
            "logvar": np.zeros((len(pixels), 8, 8, 4), np.float16),
        }

    def reconstruct(self, tensors: Any) -> NDArray[np.uint8]:
        self.shapes.append(tensors["mean"].shape)
        return np.zeros((len(tensors["mean"]), 16, 16, 3), np.uint8)


def ignore(name: str, more: int) -> None:
    """A count that nobody wants."""


@pytest.fixture
def task(photos: Path, tiny_vae: Path, tmp_path: Path) -> Plan:
    task = plan(photos, tmp_path / "out", vae=str(tiny_vae), shards=2, batch_size=7, flips=True)
    task.build.take()
    write_index(task.directory, f"{task.settings.work}/{INDEX_NAME}", task.index)
    return task


def test_latents_that_are_not_finite_are_rejected_from_both_splits(task: Plan) -> None:
    probe = Probe()
    result = make_shard(task.directory, task.settings, make_slices(task)[0], lambda: probe, ignore)
    assert isinstance(result, ShardResult)
    assert {reject.exception for reject in result.rejects} == {NOT_FINITE}
    assert 0 < len(result.rejects) < 30
    assert [file.records for file in result.files] == [30 - len(result.rejects)] * 2
    main, mirrored = (
        [
            decode_record(r, task.settings.tensors)
            for r in read_shard(Path(task.directory.root, file.name))
        ]
        for file in result.files
    )
    assert [record.key for record in main] == [record.key for record in mirrored]
    rejected = {reject.key for reject in result.rejects}
    expected = [item.key for item in list(task.index.items())[:30] if item.key not in rejected]
    assert [record.key for record in main] == expected
    assert any(
        (a.tensors["mean"] != b.tensors["mean"]).any() for a, b in zip(main, mirrored, strict=True)
    )


def test_every_batch_has_one_shape(task: Plan) -> None:
    probe = Probe()
    for piece in make_slices(task):
        make_shard(task.directory, task.settings, piece, lambda: probe, ignore)
    assert set(probe.shapes) == {(7, 16, 16, 3), (7, 8, 8, 4)}


def test_done_shard_needs_no_encoder(task: Plan) -> None:
    piece = make_slices(task)[1]
    first = make_shard(task.directory, task.settings, piece, Probe, ignore)

    def never() -> PixelEncoder:
        raise AssertionError("loaded for nothing")

    assert make_shard(task.directory, task.settings, piece, never, ignore) == first


@pytest.mark.parametrize("shards", [1, 3, 4, 32, 1000])
def test_quota_is_spread_evenly(shards: int) -> None:
    quotas = [reconstruction_quota(shard, shards) for shard in range(shards)]
    assert sum(quotas) == RECONSTRUCTED
    assert max(quotas) - min(quotas) <= 1


@pytest.mark.parametrize("lost", ["index.jsonl", "settings.json"])
def test_worker_that_was_left_behind_writes_nothing_more(task: Plan, lost: str) -> None:
    """Its dataset was finished and cleared away, or deleted and begun anew, while it was at
    work.
    """
    directory = task.directory

    class Overtaken(Probe):
        def start(self, pixels: NDArray[np.uint8]) -> Callable[[], dict[str, NDArray[Any]]]:
            for path in Path(directory.root).rglob(lost):
                path.unlink()
            return super().start(pixels)

    outcome = make_shard(directory, task.settings, make_slices(task)[0], Overtaken, ignore)
    assert isinstance(outcome, ShardFailure)
    assert "by another command meanwhile; repeat the command" in outcome.message
    left = {path.name for path in Path(directory.root).rglob("*") if path.is_file()}
    assert left == {"index.jsonl", "settings.json"} - {lost}


def test_label_outside_the_classes_is_a_reject(task: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the record knows its label, and knows better than the classes."""

    class Odd(FolderSource):
        def read(self, item: Item) -> Picture:
            return super().read(item)._replace(label=7 if "000" in item.key else 1)

    monkeypatch.setattr(
        "pipelines.preprocess.make_shard.open_source", partial(Odd, options=SourceOptions())
    )
    results = [
        make_shard(task.directory, task.settings, piece, Probe, ignore)
        for piece in make_slices(task)
    ]
    rejects = [
        reject for result in results if isinstance(result, ShardResult) for reject in result.rejects
    ]
    assert [(r.key, r.reason, r.exception) for r in rejects if r.exception != NOT_FINITE] == [
        ("ant/000.png", "its label 7 is not one of the 3 classes", "ValueError")
    ]


def test_images_are_read_ahead_but_not_without_bound(
    task: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a batch is encoded, threads read on; how far does not depend on the shard."""
    read: list[str] = []
    leads: list[int] = []

    class Watched(FolderSource):
        def read(self, item: Item) -> Picture:
            read.append(item.key)
            return super().read(item)

    class Slow(Probe):
        def start(self, pixels: NDArray[np.uint8]) -> Callable[[], dict[str, NDArray[Any]]]:
            time.sleep(0.03)
            leads.append(len(read) - 2 * (len(self.shapes) + 1))
            return super().start(pixels)

    settings = task.settings.model_copy(update={"batch_size": 2, "shards": 1, "flips": False})
    monkeypatch.setattr(
        "pipelines.preprocess.make_shard.open_source", partial(Watched, options=SourceOptions())
    )
    monkeypatch.setattr("pipelines.preprocess.make_shard.reader_threads", lambda descriptor: 3)
    write_index(task.directory, f"{settings.work}/{INDEX_NAME}", task.index)
    task.directory.remove(SETTINGS_NAME)
    dataset_build(task.directory, settings).take()
    piece = Slice(0, 0, task.index.offsets([60])[0])
    slow = Slow()
    make_shard(task.directory, settings, piece, lambda: slow, ignore)
    assert len(read) == 60
    assert max(leads) >= 3
    assert max(leads) <= 2 * max(2, 3)


def test_threads_are_as_many_as_cores_or_as_the_wait_is_worth(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(5)))
    assert reader_threads("/photos") == 5
    assert reader_threads("tar:gs://bucket/train.tar") == REMOTE_READERS
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(200)))
    assert reader_threads("/photos") == reader_threads("s3://bucket/photos") == MAX_DECODERS


def test_worker_with_other_versions_is_refused(photos: Path, tmp_path: Path) -> None:
    task = plan(photos, tmp_path / "out", shards=2)
    versions = {**task.settings.versions, "jax": "0.0.1"}
    settings = task.settings.model_copy(update={"versions": versions})
    dataset_build(task.directory, settings).take()
    outcome = make_shard(task.directory, settings, make_slices(task)[0], Probe, ignore)
    assert isinstance(outcome, ShardFailure)
    assert "a worker has other versions than the command (jax " in outcome.message
