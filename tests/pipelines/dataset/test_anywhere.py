"""Datasets by path: records at any rows, and what is told of directories that are none."""

from pathlib import Path

import numpy as np
import pytest

from pipelines.dataset import anywhere
from pipelines.dataset.anywhere import open_dataset, repeated
from schemas.errors import UserError
from schemas.manifest import MANIFEST_NAME, SETTINGS_NAME
from schemas.storage import paths
from tests.pipelines.datasets import make, tensors
from tests.refusals import refused


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    shards = [{"a": "ant", "b": "bee"}, {}, {"c": "ant", "d": "bee", "e": "ant"}]
    make(tmp_path / "out", shards, flips=True)
    return tmp_path / "out"


def test_records_come_in_the_order_of_the_rows_and_each_shard_is_opened_once(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []

    def counted(path: Path, rows: list[int]) -> list[bytes]:
        opened.append(path.name)
        return read_some(path, rows)

    read_some = anywhere.read_some
    monkeypatch.setattr(anywhere, "read_some", counted)
    dataset = open_dataset(str(directory))
    found = dataset.at("train_flip", [4, 0, 3, 0])
    assert [record.key for record in found] == ["e", "a", "d", "a"]
    assert [record.label for record in found] == [0, 0, 1, 0]
    for record in found:
        expected = tensors(record.key, "train_flip")
        np.testing.assert_array_equal(record.tensors["mean"], expected["mean"])
    assert opened == [shard.name for shard in dataset.manifest.shards[3:] if shard.records]


def test_a_damaged_and_a_foreign_shard_are_told_by_name(directory: Path) -> None:
    dataset = open_dataset(str(directory))
    first, _, last = dataset.manifest.split_shards("train")
    (directory / last.name).unlink()
    with pytest.raises(UserError, match="00002-of-00003: the shard is missing"):
        list(dataset.records(last))
    specs = {**dataset.manifest.tensors, "other": dataset.manifest.tensors["mean"]}
    changed = dataset.manifest.model_copy(update={"tensors": specs})
    other = anywhere.StoredDataset(dataset.root, changed)
    with pytest.raises(UserError, match=r"00000-of-00003: a record does not fit the manifest"):
        list(other.records(first))


def refusal(where: Path) -> str:
    return refused(lambda: open_dataset(str(where)))


def test_what_is_no_dataset_is_told_apart(directory: Path) -> None:
    assert "no such dataset directory" in refusal(directory / "nowhere")
    assert "is a file, not a dataset directory" in refusal(directory / MANIFEST_NAME)
    (directory / MANIFEST_NAME).unlink()
    assert "so this is not a dataset; make one" in refusal(directory)
    (directory / SETTINGS_NAME).write_text("{}")
    assert "not a finished dataset; repeat" in refusal(directory)
    (directory / MANIFEST_NAME).mkdir()
    assert "cannot be read (Is a directory)" in refusal(directory)


def test_a_local_file_is_read_where_it_lies(directory: Path) -> None:
    with paths.local_copy(str(directory / MANIFEST_NAME)) as path:
        assert path == directory / MANIFEST_NAME
    assert path.is_file()


def test_values_that_occur_more_than_once() -> None:
    values = np.array([5, 2, 5, 9, 2, 5], np.uint64)
    assert repeated(values).tolist() == [2, 5]
    assert repeated(values[:2]).tolist() == []
