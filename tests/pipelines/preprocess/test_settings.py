from pathlib import Path

import pytest

from pipelines.preprocess.settings import (
    differences,
    read_settings,
)
from schemas.errors import UserError
from schemas.manifest import SETTINGS_NAME
from tests.pipelines.running import plan


def test_settings_survive_the_disk(photos: Path, tiny_vae: Path, tmp_path: Path) -> None:
    task = plan(photos, tmp_path / "out", vae=str(tiny_vae))
    assert read_settings(task.directory) is None
    task.build.take()
    assert read_settings(task.directory) == task.settings
    task.build.check_ownership()


def test_differences_are_named_with_both_values(
    photos: Path, tiny_vae: Path, tmp_path: Path
) -> None:
    one = plan(photos, tmp_path / "out", vae=str(tiny_vae)).settings
    assert differences(one, one) == []
    other = plan(photos, tmp_path / "out", vae="none", shards=5).settings
    changed = differences(one, other)
    assert "shards: 4 -> 5" in changed
    assert f"vae.id: {tiny_vae} -> None" in changed


def test_ranges_cover_every_record_once(photos: Path, tmp_path: Path) -> None:
    settings = plan(photos, tmp_path / "out", shards=7).settings
    ranges = [settings.shard_range(shard) for shard in range(7)]
    assert [row for start, stop in ranges for row in range(start, stop)] == list(range(60))
    assert {stop - start for start, stop in ranges} == {8, 9}


def test_damaged_settings_are_no_settings(photos: Path, tmp_path: Path) -> None:
    task = plan(photos, tmp_path / "out")
    task.directory.write(SETTINGS_NAME, '{"resolution": 16}')
    with pytest.raises(UserError, match="damaged or written by another release"):
        read_settings(task.directory)
