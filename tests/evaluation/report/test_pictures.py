"""Pictures of a report: which images, in which rows, and what is left out."""

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evaluation.draw.generate import generate
from evaluation.draw.setting import Setting, sampling_facts, setting_name
from evaluation.report import pictures
from evaluation.report.pictures import Picture
from evaluation.results import Result, Sampling
from flowtrain.state.checkpoint import TrainedModel
from pipelines.dataset.finished import LatentDataset
from pipelines.grid import tile
from schemas.errors import UserError
from schemas.layout import Layout
from schemas.sampler import SamplerSettings
from tests.evaluation import scenes, tiny
from tests.evaluation.conftest import World
from tests.evaluation.results import result

RNG = np.random.default_rng(0)


def shown(picture: Picture) -> np.ndarray:
    """The pixels of a picture on a page."""
    kind, _, data = picture.uri.partition(",")
    assert kind == "data:image/png;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        assert image.size == (picture.width, picture.height)
        return np.asarray(image)


def of_sampling(sampling: Sampling) -> Result:
    return result().model_copy(update={"sampling": sampling})


@pytest.fixture
def images() -> np.ndarray:
    return RNG.integers(0, 256, (12, 6, 8, 3), dtype=np.uint8)


def test_a_row_a_class_with_its_name(images: np.ndarray) -> None:
    labels = np.array([2, 0, 2, 2, 0, 5, 5, 2, 0, 0, 0, 2])
    names = ("ant", "bee", "red fox", "cat", "dog", "eel")
    rows = pictures.class_rows(images, labels, names, columns=3)
    assert [name for name, _ in rows] == ["ant", "red fox", "eel"]
    for (_, strip), chosen in zip(rows, ([1, 4, 8], [0, 2, 3], [5, 6]), strict=True):
        np.testing.assert_array_equal(shown(strip), tile([images[chosen]]))
    assert rows[2][1].alt == "2 samples of class eel"
    grid = pictures.block(images, labels, 2, "all of them")
    np.testing.assert_array_equal(
        shown(grid), tile([images[[1, 4]], images[[0, 2]], images[[5, 6]]])
    )
    assert grid.alt == "all of them"


def test_a_thousand_classes_show_their_first(images: np.ndarray) -> None:
    labels = np.arange(12) * 3
    names = [str(number) for number in range(36)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures, "MOST_CLASSES", 4)
        rows = pictures.class_rows(images, labels, names, columns=3)
        grid = pictures.block(images, labels, 3, "")
    assert [name for name, _ in rows] == ["0", "3", "6", "9"]
    np.testing.assert_array_equal(shown(grid), tile([images[[n]] for n in range(4)]))


def test_only_classes_that_are_shown_are_drawn_and_decoded(
    world: World, trained: TrainedModel, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    every, of = pictures.fresh_samples(world.workdir, world.run)
    monkeypatch.setattr(pictures, "MOST_CLASSES", 2)
    images, labels = pictures.fresh_samples(world.workdir, world.run)
    assert np.bincount(labels).tolist() == [10, 10]
    assert np.abs(images.astype(int) - every[of < 2]).max() <= 1, (
        "the same samples, rounded in other batches"
    )
    setting = Setting(9, SamplerSettings("euler", 1, 1.0))
    sampling = sampling_facts(trained, setting)
    generate(trained, setting, workdir / "samples" / setting_name(sampling), batch_size=9)
    stored = pictures.stored_samples(workdir, of_sampling(sampling), 9)
    assert np.bincount(stored[1]).tolist() == [3, 3]
    assert len(stored[0]) == 6


def test_a_run_that_was_never_evaluated_shows_samples_of_its_own_solver(
    workdir: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def noted(trained: object, setting: Setting, *others: object) -> tuple[np.ndarray, np.ndarray]:
        seen.append(setting.sampler.solver)
        return np.zeros((3, 8, 8, 3), np.uint8), np.arange(3)

    monkeypatch.setattr("evaluation.draw.sample.images_and_labels", noted)
    sampler = world.run.recipe.sampler.model_copy(update={"solver": "ddpm"})
    recipe = world.run.recipe.model_copy(update={"sampler": sampler})
    pictures.fresh_samples(workdir, world.run.model_copy(update={"recipe": recipe}))
    assert seen == ["ddpm"]


def test_the_shown_setting_has_its_neighbours_first(tmp_path: Path) -> None:
    """Of each setting the picture of the most samples, under the protocol of its name alone."""
    folder = tmp_path / "eval"
    folder.mkdir()
    results = [result(steps, cfg) for cfg in (1, 2) for steps in (2, 1)]

    def save(one: Result, ending: str, size: tuple[int, int]) -> None:
        assert one.sampling is not None
        name = f"neighbours-{setting_name(one.sampling)}-{ending}.png"
        Image.new("RGB", size).save(folder / name)

    for one in results:
        save(one, "tiny-3", (3, 3))
    titles = [title for title, _ in pictures.neighbour_pictures(tmp_path, results, results[1])]
    assert titles == ["1 step, no guidance", "1 step, guidance 2"], "the others: last first"
    for ending, size in (("tiny-12", (7, 5)), ("tiny-2", (1, 1)), ("tiny-b-99", (2, 2))):
        save(results[3], ending, size)
    _, shown = pictures.neighbour_pictures(tmp_path, results, results[3])[0]
    assert (shown.width, shown.height) == (7, 5)
    for path in folder.iterdir():
        path.unlink()
    assert pictures.neighbour_pictures(tmp_path, results, results[1]) == []


def test_pixels_have_nothing_to_reconstruct(tmp_path: Path) -> None:
    scenes.make_dataset(tmp_path / "pixels", Layout.IMAGE, None)
    pairs = pictures.reconstructions(LatentDataset(tmp_path / "pixels"))
    assert pairs.reconstructed is None
    assert pairs.real is not None
    assert pairs.real.alt == "images of the dataset"


def test_reconstructions_are_beside_their_originals(world: World, tmp_path: Path) -> None:
    source = tmp_path / "images"
    source.mkdir()
    originals = RNG.integers(0, 256, (12, tiny.SIDE, tiny.SIDE, 3), dtype=np.uint8)
    for number, pixels in enumerate(originals):
        Image.fromarray(pixels).save(source / f"{number:03d}.png")
    directory = tmp_path / "latents"
    tiny.make_dataset(directory, world.vae, records=12, shards=1, source=str(source))
    pairs = pictures.reconstructions(LatentDataset(directory))
    assert pairs.real is not None
    assert pairs.reconstructed is not None
    # three of each of three classes, which come in turn
    chosen = [label + 3 * place for label in range(3) for place in range(3)]
    np.testing.assert_array_equal(shown(pairs.real), tile([originals[chosen]]))
    assert shown(pairs.reconstructed).shape == shown(pairs.real).shape
    (source / "004.png").unlink()
    pairs = pictures.reconstructions(LatentDataset(directory))
    assert pairs.real is None
    assert pairs.note == f"The source {source} is not reachable from here."


def test_samples_that_are_gone_are_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such dataset"):
        pictures.stored_samples(tmp_path, result(), 3)
