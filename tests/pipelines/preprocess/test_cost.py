from pathlib import Path

import pytest

from pipelines.encoders.flops import encoder_flops
from pipelines.preprocess.cost import describe
from tests.pipelines.running import plan


def test_pixels_cost_bytes_and_time_only(photos: Path, tmp_path: Path) -> None:
    facts = describe(plan(photos, tmp_path / "out", resolution=20), images_per_second=2.0)
    assert facts["bytes"] == 60 * 20 * 20 * 3
    assert facts["bytes_per_shard"] == 15 * 20 * 20 * 3
    assert facts["flops_per_image"] is facts["flops"] is facts["vae_dtype"] is None
    assert facts["hours"] == pytest.approx(60 / 2 / 3600, abs=0.01)
    assert facts["command"].startswith(
        f"flowtrain preprocess {photos} OUT --split train --resolution 20 "
    )


def test_mirrored_images_cost_as_much_again(photos: Path, tiny_vae: Path, tmp_path: Path) -> None:
    once, twice = (
        describe(
            plan(photos, tmp_path / "out", vae=str(tiny_vae), flips=flips), images_per_second=0.001
        )
        for flips in (False, True)
    )
    assert once["flops_per_image"] == encoder_flops(str(tiny_vae), 16)
    assert once["flops"] == 60 * once["flops_per_image"]
    assert once["bytes"] == 60 * 8 * 8 * 4 * 2 * 2
    for figure in ("bytes", "flops_per_image", "flops", "hours"):
        assert twice[figure] == pytest.approx(2 * once[figure], rel=1e-3)
    assert once["bytes_per_shard"] == twice["bytes_per_shard"]
