"""Grids: every image in its place, untouched."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.grid import by_class, tile, write_png


def test_images_stand_in_rows_with_white_between() -> None:
    images = np.arange(5 * 2 * 3 * 3, dtype=np.uint8).reshape(5, 2, 3, 3)
    canvas = tile([images[:3], images[3:]], gap=1)
    assert canvas.shape == (2 * 2 + 1, 3 * 3 + 2, 3)
    np.testing.assert_array_equal(canvas[:2, 4:7], images[1])
    np.testing.assert_array_equal(canvas[3:5, :3], images[3])
    assert (canvas[2] == 255).all()
    assert (canvas[3:, 8:] == 255).all(), "a short row ends in white"


def test_rows_are_classes_in_order() -> None:
    images = np.arange(6, dtype=np.uint8)[:, None, None, None]
    rows = by_class(images, np.array([2, 0, 2, 0, 2, 5]), columns=2)
    assert [row[:, 0, 0, 0].tolist() for row in rows] == [[1, 3], [0, 2], [5]]


def test_png_keeps_pixels(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, size=(4, 8, 8, 3), dtype=np.uint8)
    write_png(tmp_path / "grid.png", [images])
    decoded = np.asarray(Image.open(tmp_path / "grid.png"))
    np.testing.assert_array_equal(decoded, tile([images]))


def test_sizes_must_agree() -> None:
    with pytest.raises(ValueError, match="one size"):
        tile([np.zeros((1, 2, 2, 3), np.uint8), np.zeros((1, 4, 4, 3), np.uint8)])
