"""The picture of nearest training images: the right ones, in the right places."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evaluation.features.imagesets import ImageSet, batch_images
from evaluation.features.measure import Measured
from evaluation.preview.sheet import MARGIN
from evaluation.report.neighbours import NEAREST, write_neighbours
from pipelines.grid import tile
from schemas.errors import UserError
from tests.evaluation.results import measured

SIDE = 32  # shown pixel by pixel
Images = tuple[ImageSet, Measured]


def make(folder: Path, name: str, images: np.ndarray, features: np.ndarray) -> Images:
    np.savez(folder / f"{name}-images.npz", images)
    return batch_images(folder / f"{name}-images.npz"), measured(folder / f"{name}.npz", features)


def test_a_sample_is_above_its_nearest_training_images(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, 256, (12, SIDE, SIDE, 3), dtype=np.uint8)
    real = rng.integers(0, 256, (30, SIDE, SIDE, 3), dtype=np.uint8)
    drawn_features, real_features = rng.normal(size=(12, 4)), rng.normal(size=(30, 4))
    drawn_features[4] = real_features[17]  # a copy
    training = make(tmp_path, "real", real, real_features)
    out = tmp_path / "out.png"
    write_neighbours(out, make(tmp_path, "drawn", drawn, drawn_features), training, 10)
    apart = np.linalg.norm(drawn_features[:, None] - real_features[None], axis=-1)
    order = np.argsort(apart, axis=1)[:, :NEAREST]
    worst = np.argsort(apart.min(axis=1))[:10]  # wider than the words above them
    assert (worst[0], order[4, 0]) == (4, 17)
    rows = [drawn[worst], *(real[order[worst, place]] for place in range(NEAREST))]
    expected = tile(rows)
    with Image.open(io.BytesIO(out.read_bytes())) as image:
        picture = np.asarray(image)
    height, width = expected.shape[:2]
    np.testing.assert_array_equal(
        picture[-MARGIN - height : -MARGIN, -MARGIN - width : -MARGIN], expected
    )


def test_few_samples_or_images(tmp_path: Path) -> None:
    def some(name: str, count: int) -> Images:
        return make(
            tmp_path,
            name,
            np.zeros((count, SIDE, SIDE, 3), np.uint8),
            np.random.default_rng(1).normal(size=(count, 4)),
        )

    out = tmp_path / "out.png"
    write_neighbours(out, some("two", 2), some("five", 5), 10)
    assert out.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    out.unlink()
    with pytest.raises(UserError, match="5 neighbours needs at least 5 samples, not 4"):
        write_neighbours(out, some("two", 2), some("four", 4), 10)
    assert not out.exists()
