"""Panels of images on one sheet of paper, each under a caption, with a name beside each row."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from pipelines.grid import GAP, PAPER, tile

SMALLEST = 32  # smaller images are enlarged, or the names beside them would not fit
MARGIN = 8
BETWEEN = 16  # panels
INK = (60, 60, 60)
LONGEST = 18  # characters of a name


@dataclass(frozen=True)
class Panel:
    """Rows of images, each (n_i, H, W, 3) uint8, and what they are."""

    caption: str
    rows: Sequence[NDArray[np.uint8]]


def sheet(panels: Sequence[Panel], names: Sequence[str] = ()) -> NDArray[np.uint8]:
    """Panels side by side, (height, width, 3) uint8.

    Images are shown pixel by pixel; those of fewer than 32 rows are enlarged by a whole factor,
    without smoothing.

    Args:
        panels: with the same number of rows each, of images of one size.
        names: of the rows, or none; long ones are cut.

    Raises:
        ValueError: no panels, no images, images of several sizes, or panels with other numbers of
            rows.
    """
    if not panels or len({len(panel.rows) for panel in panels}) != 1:
        raise ValueError(
            f"a sheet needs panels of as many rows, got {[len(panel.rows) for panel in panels]}"
        )
    side = panels[0].rows[0].shape[1]
    factor = math.ceil(SMALLEST / side)
    grids = _grids(panels, factor)
    font = ImageFont.load_default(size=min(max(side * factor // 4, 13), 24))
    assert isinstance(font, ImageFont.FreeTypeFont), "Pillow's wheels bring FreeType"

    labels = [_shortened(name) for name in names]
    captions = [panel.caption for panel in panels]
    left = MARGIN
    if labels:
        left += max(_width(font, label) for label in labels) + MARGIN
    top = 2 * MARGIN + sum(font.getmetrics())
    paper = _paper(grids, captions, font, (left, top))

    draw = ImageDraw.Draw(paper)
    for i, label in enumerate(labels):
        middle = top + i * (side + GAP) * factor + side * factor // 2
        draw.text((left - MARGIN, middle), label, INK, font, anchor="rm")
    return np.asarray(paper).copy()


def _grids(panels: Sequence[Panel], factor: int) -> list[NDArray[np.uint8]]:
    """The images of each block, enlarged, with gaps between them."""
    grids = [tile([_enlarged(row, factor) for row in panel.rows], GAP * factor) for panel in panels]
    if len({grid.shape[0] for grid in grids}) != 1:
        raise ValueError("a sheet needs images of one size")
    return grids


def _paper(
    grids: Sequence[NDArray[np.uint8]],
    captions: Sequence[str],
    font: ImageFont.FreeTypeFont,
    corner: tuple[int, int],
) -> Image.Image:
    """Grids of one height from a corner (x, y) to the right, each under its caption."""
    left, top = corner
    captioned = list(zip(grids, captions, strict=True))
    widths = [max(grid.shape[1], _width(font, caption)) for grid, caption in captioned]
    width = left + sum(widths) + BETWEEN * (len(grids) - 1) + MARGIN
    height = top + grids[0].shape[0] + MARGIN
    paper = Image.new("RGB", (width, height), (PAPER,) * 3)
    draw = ImageDraw.Draw(paper)
    for (grid, caption), own_width in zip(captioned, widths, strict=True):
        draw.text((left, top - MARGIN), caption, INK, font, anchor="ld")
        paper.paste(Image.fromarray(grid), (left, top))
        left += own_width + BETWEEN
    return paper


def _shortened(name: str) -> str:
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"


def _enlarged(images: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    return images.repeat(factor, axis=1).repeat(factor, axis=2)


def _width(font: ImageFont.FreeTypeFont, text: str) -> int:
    return math.ceil(font.getlength(text))
