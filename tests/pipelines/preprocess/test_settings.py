from pathlib import Path

import pytest

from pipelines.preprocess.settings import (
    check_ownership,
    current_versions,
    differences,
    read_settings,
    write_settings,
)
from schemas.errors import UserError
from schemas.manifest import MANIFEST_NAME, SETTINGS_NAME
from tests.pipelines.running import plan


def test_settings_survive_the_disk(photos: Path, tiny_vae: Path, tmp_path: Path) -> None:
    task = plan(photos, tmp_path / "out", vae=str(tiny_vae))
    assert read_settings(task.directory) is None
    write_settings(task.directory, task.settings)
    assert read_settings(task.directory) == task.settings
    check_ownership(task.directory, task.settings)


def test_differences_are_named_with_both_values(
    photos: Path, tiny_vae: Path, tmp_path: Path
) -> None:
    one = plan(photos, tmp_path / "out", vae=str(tiny_vae)).settings
    assert differences(one, one) == []
    other = plan(photos, tmp_path / "out", vae="none", shards=5).settings
    changed = differences(one, other)
    assert "shards: 4 -> 5" in changed
    assert f"vae.id: {tiny_vae} -> None" in changed


def test_other_versions_may_read_a_finished_dataset_but_not_go_on_with_a_half_made_one(
    photos: Path, tmp_path: Path
) -> None:
    task = plan(photos, tmp_path / "out")
    old = task.settings.model_copy(update={"versions": {**current_versions(), "jax": "0.0.1"}})
    write_settings(task.directory, old)
    with pytest.raises(UserError, match=r"half-made dataset.*versions.jax: 0.0.1 -> "):
        check_ownership(task.directory, task.settings)
    (tmp_path / "out" / MANIFEST_NAME).touch()
    check_ownership(task.directory, task.settings)


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
