import math
from pathlib import Path

import numpy as np
import pytest

from pipelines.dataset.shard_results import (
    ChannelSums,
    ErrorSums,
    Reject,
    ShardResult,
    marker_name,
    read_marker,
    write_marker,
)
from schemas.files import sha256_file
from schemas.layout import Layout
from schemas.manifest import ShardInfo
from schemas.storage.directory import Directory


def tensors(count: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    mean = (rng.normal(size=(count, 3, 5, 4)) * [1, 5, 0.1, 2] + [0, 100, -3, 1]).astype(np.float16)
    return {"mean": mean, "logvar": rng.normal(-3, 1, (count, 3, 5, 4)).astype(np.float16)}


def test_statistics_of_moments() -> None:
    values = tensors(40)
    statistics = ChannelSums.of(Layout.MOMENTS, values).statistics()
    mean = values["mean"].astype(np.float64)
    noise = np.exp(values["logvar"].astype(np.float64))
    np.testing.assert_allclose(statistics.mean, mean.mean((0, 1, 2)), rtol=1e-13)
    np.testing.assert_allclose(
        statistics.std, np.sqrt(mean.var((0, 1, 2)) + noise.mean((0, 1, 2))), rtol=1e-9
    )


def test_a_posterior_sample_has_these_statistics() -> None:
    values = tensors(400)
    rng = np.random.default_rng(1)
    mean, logvar = (values[name].astype(np.float64) for name in ("mean", "logvar"))
    sample = mean + np.exp(0.5 * logvar) * rng.normal(size=mean.shape)
    statistics = ChannelSums.of(Layout.MOMENTS, values).statistics()
    np.testing.assert_allclose(statistics.std, sample.std((0, 1, 2)), rtol=0.02)


def test_merge_does_not_depend_on_the_order() -> None:
    parts = [ChannelSums.of(Layout.MOMENTS, tensors(3, seed)) for seed in range(20)]
    merged = ChannelSums.merge(parts, 4)
    assert merged == ChannelSums.merge(parts[::-1], 4)
    whole = {
        name: np.concatenate([tensors(3, seed)[name] for seed in range(20)])
        for name in ("mean", "logvar")
    }
    assert merged.positions == 20 * 3 * 15
    np.testing.assert_allclose(
        merged.squares, ChannelSums.of(Layout.MOMENTS, whole).squares, rtol=1e-13
    )


def test_images_are_measured_in_the_model_range() -> None:
    image = np.zeros((1, 2, 2, 3), np.uint8)
    image[..., 0] = 255
    statistics = ChannelSums.of(Layout.IMAGE, {"image": image}).statistics()
    assert statistics.mean == (1.0, -1.0, -1.0)
    assert statistics.std == (0.0, 0.0, 0.0)


def test_psnr_is_that_of_all_errors_together() -> None:
    originals = np.full((2, 4, 4, 3), 100, np.uint8)
    decoded = originals.copy()
    decoded[0] += 3
    decoded[1] -= 1
    parts = [ErrorSums.of(originals[n : n + 1], decoded[n : n + 1]) for n in range(2)]
    reconstruction = ErrorSums.merge(parts).reconstruction()
    assert reconstruction is not None
    assert reconstruction.records == 2
    assert reconstruction.psnr_db == pytest.approx(10 * math.log10(255**2 / 5))


def test_psnr_of_nothing_and_of_perfection() -> None:
    assert ErrorSums.merge([]).reconstruction() is None
    same = np.zeros((1, 8, 8, 3), np.uint8)
    perfect = ErrorSums.of(same, same).reconstruction()
    assert perfect is not None
    assert math.isfinite(perfect.psnr_db)
    assert perfect.psnr_db > 60


def test_marker_counts_only_while_it_fits_the_file(tmp_path: Path) -> None:
    directory = Directory(str(tmp_path))
    path = tmp_path / "shard"
    path.write_bytes(b"records")
    result = ShardResult(
        shard=3,
        items=2,
        files=(
            ShardInfo(name="shard", split="train", records=1, bytes=7, sha256=sha256_file(path)),
        ),
        rejects=(Reject(key="ü/\n", reason="bad", exception="OSError", size=4),),
        channels=ChannelSums(positions=1, total=(0.1,), squares=(1e-300,), noise=(3.0,)),
        errors=ErrorSums(),
    )
    assert read_marker(directory, "work", 3) is None
    write_marker(directory, "work", result)
    assert read_marker(directory, "work", 3) == result
    for damaged in (b"record", b"recorDs"):
        path.write_bytes(damaged)
        assert read_marker(directory, "work", 3) is None
    path.write_bytes(b"records")
    assert read_marker(directory, "work", 3) == result
    Path(directory.root, marker_name("work", 3)).write_text("{")
    assert read_marker(directory, "work", 3) is None
