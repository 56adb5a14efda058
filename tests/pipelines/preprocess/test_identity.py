"""Whose a directory is, as `preprocess` tells it."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from pipelines.preprocess.identity import dataset_build
from pipelines.preprocess.settings import current_versions
from schemas.errors import UserError
from schemas.manifest import MANIFEST_NAME, SETTINGS_NAME
from tests.pipelines.running import plan


def test_other_versions_may_read_a_finished_dataset_but_not_go_on_with_a_half_made_one(
    photos: Path, tmp_path: Path
) -> None:
    task = plan(photos, tmp_path / "out")
    old = task.settings.model_copy(update={"versions": {**current_versions(), "jax": "0.0.1"}})
    dataset_build(task.directory, old).take()
    with pytest.raises(UserError, match=r"half-made dataset.*versions.jax: 0.0.1 -> "):
        task.build.check_ownership()
    (tmp_path / "out" / MANIFEST_NAME).touch()
    task.build.check_ownership()


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"source_state": "0"}, "images of .* have changed since .* was begun: names and sizes"),
        ({"records": 9}, "has changed since .* was begun: it listed 9 images then and lists 60"),
        ({"seed": 7, "records": 9}, r"half-made dataset with other settings \(records: 9 -> 60; "),
        (
            {"seed": 7, "resolution": 8, "crop": "none", "shards": 9},
            r"with other settings \(resolution: 8 -> 16; crop: none -> adm; .* and 1 more\)",
        ),
    ],
)
def test_line_says_whether_the_source_or_the_command_has_changed(
    photos: Path, tmp_path: Path, changes: Mapping[str, object], line: str
) -> None:
    task = plan(photos, tmp_path / "out")
    dataset_build(task.directory, task.settings.model_copy(update=changes)).take()
    with pytest.raises(UserError, match=line):
        task.build.check_ownership()


def test_settings_are_the_same_in_whatever_order_they_are_written(
    photos: Path, tmp_path: Path
) -> None:
    """Versions of another commit may come in another order, and are compared by name."""
    task = plan(photos, tmp_path / "out")
    versions = dict(reversed(list(task.settings.versions.items())))
    other = dataset_build(task.directory, task.settings.model_copy(update={"versions": versions}))
    other.take()
    assert list(json.loads(task.directory.read(SETTINGS_NAME))["versions"]) == list(versions)
    task.build.check_ownership()
