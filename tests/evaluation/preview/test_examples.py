"""Records to look at: which ones, and in which scale."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from evaluation.preview.examples import MOST, pick, read_examples
from pipelines.dataset.finished import LatentDataset
from schemas.errors import UserError
from schemas.layout import Layout
from schemas.manifest import Normalization, VaeInfo
from schemas.record import Record
from tests.evaluation import scenes


def _records(labels: Sequence[int]) -> list[Record]:
    return [Record(f"{i}", label, {}) for i, label in enumerate(labels)]


def _keys(labels: Sequence[int], classes: int) -> list[str]:
    return [record.key for record in pick(_records(labels), classes)]


def test_the_first_records_of_each_of_the_first_classes() -> None:
    assert _keys([2, 0, 1, 0, 2, 1, 0, 1, 2], classes=3) == ["1", "3", "2", "5", "0", "4"]
    assert _keys([*range(20, 0, -1), *range(20)], classes=20) == [
        str(20 + label) if label == 0 else str(20 - label) for label in range(8)
    ]
    assert _keys([0] * 20, classes=1) == [str(i) for i in range(MOST)]


def test_nothing_is_read_once_all_are_found() -> None:
    records = iter(_records([0, 1, 0, 1, 0, 1, 0, 1, 0, 1]))
    assert len(pick(records, 2)) == 8
    assert next(records).key == "8"


def test_others_stand_in_for_classes_that_are_not_found() -> None:
    chosen = pick(_records([50, 3, 60, 70, 70, 70, 70, 70, 70, 70, 70]), classes=100)
    assert [record.label for record in chosen] == [3, 50, 60, 70, 70, 70, 70, 70]


def _vae() -> VaeInfo:
    return VaeInfo(
        id="none",
        sha256="0" * 64,
        config_sha256="0" * 64,
        factor=2,
        latent_channels=4,
        scaling_factor=0.5,
        shift_factor=0.1,
    )


@pytest.mark.parametrize("layout", list(Layout))
def test_examples_are_in_the_scale_of_the_model(tmp_path: Path, layout: Layout) -> None:
    vae = None if layout is Layout.IMAGE else _vae()
    stored = (
        Normalization(offset=(0.1, 0.2, 0.3, 0.4), scale=(2.0, 3.0, 4.0, 5.0))
        if layout is Layout.LATENT
        else None
    )
    directory = tmp_path / "data"
    manifest = scenes.make_dataset(directory, layout, vae, normalization=stored)
    run = scenes.make_run(directory, manifest)
    examples = read_examples(directory, run)
    records = list(LatentDataset(directory).records())
    first = {label: [r for r in records if r.label == label][:2] for label in range(3)}
    values = {
        Layout.MOMENTS: lambda r: (r.tensors["mean"].astype(np.float64) - 0.1) * 0.5,
        Layout.LATENT: lambda r: r.tensors["latent"].astype(np.float64),
        Layout.IMAGE: lambda r: r.tensors["image"] / 127.5 - 1,
    }[layout]
    expected = np.stack([values(record) for label in range(3) for record in first[label]])
    np.testing.assert_allclose(examples.latents, expected, atol=1e-5)
    assert examples.latents.dtype == np.float32
    assert examples.labels.tolist() == [0, 0, 1, 1, 2, 2]


def test_another_dataset_is_refused(tmp_path: Path) -> None:
    manifest = scenes.make_dataset(tmp_path / "one", Layout.IMAGE, None)
    run = scenes.make_run(tmp_path / "one", manifest)
    scenes.make_dataset(tmp_path / "two", Layout.IMAGE, None, classes=("only",))
    with pytest.raises(UserError, match="two: not the dataset of the run"):
        read_examples(tmp_path / "two", run)
