from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipelines.encoders import PixelEncoder
from pipelines.index import INDEX_NAME, write_index
from pipelines.plan import Plan
from pipelines.preprocess import make_slices
from pipelines.results import ShardResult
from pipelines.settings import write_settings
from pipelines.shards import read_shard
from pipelines.work import RECONSTRUCTED, make_shard, reconstruction_quota
from schemas.record import decode_record
from tests.pipelines.running import plan


class Probe:
    """An encoder whose latent tells the pixel it came from, and that fails on very bright images."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def start(self, pixels: NDArray[np.uint8]) -> Callable[[], dict[str, NDArray[Any]]]:
        self.shapes.append(pixels.shape)
        corner = pixels[:, :8, :8, :1].astype(np.float16)
        corner[corner[:, 0, 0, 0] > 200] = np.inf
        return lambda: {"mean": np.repeat(corner, 4, -1), "logvar": np.zeros((len(pixels), 8, 8, 4), np.float16)}

    def reconstruct(self, tensors: Any) -> NDArray[np.uint8]:
        self.shapes.append(tensors["mean"].shape)
        return np.zeros((len(tensors["mean"]), 16, 16, 3), np.uint8)


def ignore(name: str, more: int) -> None:
    """A count that nobody wants."""


@pytest.fixture
def task(photos: Path, tiny_vae: Path, tmp_path: Path) -> Plan:
    task = plan(photos, tmp_path / "out", vae=str(tiny_vae), shards=2, batch_size=7, flips=True)
    write_settings(task.directory, task.settings)
    write_index(task.directory, f"{task.settings.work}/{INDEX_NAME}", task.index)
    return task


def test_latents_that_are_not_finite_are_rejected_from_both_splits(task: Plan) -> None:
    probe = Probe()
    result = make_shard(task.directory, task.settings, make_slices(task)[0], lambda: probe, ignore)
    assert isinstance(result, ShardResult)
    assert {reject.exception for reject in result.rejects} == {"OverflowError"}
    assert 0 < len(result.rejects) < 30
    assert [file.records for file in result.files] == [30 - len(result.rejects)] * 2
    main, mirrored = (
        [decode_record(r, task.settings.tensors) for r in read_shard(task.directory.local(file.name))]
        for file in result.files
    )
    assert [record.key for record in main] == [record.key for record in mirrored]
    rejected = {reject.key for reject in result.rejects}
    expected = [item.key for item in list(task.index.items())[:30] if item.key not in rejected]
    assert [record.key for record in main] == expected
    assert any((a.tensors["mean"] != b.tensors["mean"]).any() for a, b in zip(main, mirrored, strict=True))


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
