"""Samples as a grid, a batch or a dataset: the same ones, written whole or not at all."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evaluation.draw import sample
from evaluation.draw.sample import DrawRequest, draw_to, images_and_labels, plan
from evaluation.draw.setting import Setting
from flowtrain.state.checkpoint import TrainedModel
from pipelines.dataset.finished import LatentDataset
from schemas.bars import bar
from schemas.errors import UserError
from schemas.layout import Layout
from schemas.sampler import SamplerSettings
from schemas.statistics import read_statistics
from tests.evaluation import scenes
from tests.evaluation.commands import succeed
from tests.evaluation.conftest import World

pytestmark = pytest.mark.usefixtures("tiny_protocol")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> TrainedModel:
    """Of pixels: nothing has to be decoded."""
    directory = tmp_path_factory.mktemp("sample") / "pixels"
    manifest = scenes.make_dataset(directory, Layout.IMAGE, None)
    return scenes.trained_model(scenes.make_run(directory, manifest))


def test_sample_writes_a_grid_a_batch_and_a_dataset_of_the_same_samples(
    world: World, tmp_path: Path
) -> None:
    options = ["--num", 12, "--steps", 2, "--cfg", 2, "--batch-size", 8, "--seed", 4]
    for name in ("grid.png", "batch.npz", "set"):
        succeed("sample", world.workdir, tmp_path / name, *options)
    with np.load(tmp_path / "batch.npz") as batch:
        images, labels = batch["arr_0"], batch["arr_1"]
    assert images.dtype == np.uint8
    assert images.shape == (12, 8, 8, 3)
    assert labels.tolist() == [0, 1, 2] * 4
    grid = np.asarray(Image.open(tmp_path / "grid.png"))
    assert grid.shape == (3 * 10 - 2, 4 * 10 - 2, 3)
    np.testing.assert_array_equal(grid[10:18, 10:18], images[4])  # second of class one
    assert len(LatentDataset(tmp_path / "set")) == 12
    succeed("stats", tmp_path / "set", tmp_path / "set.npz", "--extractor", "tiny")
    succeed("stats", tmp_path / "batch.npz", tmp_path / "b.npz", "--extractor", "tiny")
    np.testing.assert_allclose(
        read_statistics(tmp_path / "set.npz").mu, read_statistics(tmp_path / "b.npz").mu
    )


def test_a_grid_stays_small_with_many_classes(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample, "MOST_ROWS", 2)  # of three classes
    succeed("sample", world.workdir, tmp_path / "grid.png", "--steps", 1, "--cfg", 1, "--num", 12)
    assert np.asarray(Image.open(tmp_path / "grid.png")).shape == (2 * 10 - 2, 10 * 10 - 2, 3)


@pytest.mark.parametrize("name", ["grid.png", "batch.npz"])
def test_a_sample_file_is_written_whole_or_not_at_all(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    asked: list[int] = []

    def full(handle: int) -> None:
        asked.append(handle)
        raise OSError(28, "No space left on device")

    (tmp_path / name).write_bytes(b"before")
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises((OSError, AssertionError)):
        succeed("sample", world.workdir, tmp_path / name, "--num", 3, "--steps", 1, "--cfg", 1)
    assert asked, "it failed before it wrote"
    assert (tmp_path / name).read_bytes() == b"before"


def test_some_of_the_samples_are_those_of_the_whole(model: TrainedModel) -> None:
    setting = Setting(11, SamplerSettings("euler", 3, 2.0, seed=5))
    seen: list[int] = []
    images, labels = images_and_labels(model, setting, 4, seen.append)
    assert (images.shape, images.dtype, labels.dtype) == ((11, 8, 8, 3), np.uint8, np.int64)
    assert labels.tolist() == [number % 3 for number in range(11)]
    assert sum(seen) == 11
    numbers = np.array([9, 2, 10, 3])
    some, of = images_and_labels(model, setting, 4, seen.append, numbers)
    assert of.tolist() == [0, 2, 1, 0]
    assert np.abs(some.astype(int) - images[numbers]).max() <= 1, "rounded in other batches"


@pytest.mark.parametrize(("name", "told"), [("there.png", "is a directory"), ("no/x.npz", "no ")])
def test_a_place_that_cannot_be_is_told_before_any_work(
    tmp_path: Path, name: str, told: str
) -> None:
    (tmp_path / "there.png").mkdir()
    setting = Setting(3, SamplerSettings("euler", 1, 1.0))
    request = DrawRequest(tmp_path / "no run", tmp_path / name, setting, None, "ema", 8)
    with pytest.raises(UserError, match=told) as caught:
        draw_to(request, bar)
    assert str(caught.value).startswith(f"{tmp_path / name}: ")


@pytest.mark.parametrize(
    ("out", "kind"),
    [("x.PNG", "a grid of images"), ("x.npz", "a batch in ADM's layout"), ("x", "a dataset")],
)
def test_the_plan_counts_the_work(model: TrainedModel, out: str, kind: str) -> None:
    def planned(sampler: SamplerSettings) -> dict[str, object]:
        setting = Setting(70_000, sampler)
        return plan(DrawRequest(Path("run"), Path(out), setting, None, "ema", 8), model.run)

    facts = planned(SamplerSettings("heun", 10, 4.0, seed=3))
    assert facts["network evaluations"] == "40 a sample, 2,800,000 in all"
    assert facts["out"] == f"{out} ({kind})"
    assert facts["checkpoint"] == "newest, ema weights"
    assert facts["sampler"] == "heun, 10 steps, guidance 4, seed 3"
    nbytes = 70_000 * 8 * 8 * 3 * 2  # float16
    shards = -(-70_000 // sample.SHARD_SIZE)
    expected = f"{shards}, about {nbytes / 1e6:.1f} MB" if kind == "a dataset" else None
    assert facts.get("shards") == expected
    adaptive = planned(SamplerSettings("dopri5", 0, 1.0))
    assert adaptive["network evaluations"] == "as many as each sample needs"
