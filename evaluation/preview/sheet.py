"""Blocks of images on one sheet of paper, with a caption above each block and a name beside each
row.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from pipelines.grid import GAP, PAPER, tile

SMALLEST = 32  # smaller images are enlarged, or the names beside them would not fit
MARGIN = 8
BETWEEN = 16  # blocks
INK = (60, 60, 60)
LONGEST = 18  # characters of a name


@dataclass(frozen=True)
class Block:
    """Rows of images, each (n_i, H, W, 3) uint8, and what they are."""

    caption: str
    rows: Sequence[NDArray[np.uint8]]


def sheet(blocks: Sequence[Block], names: Sequence[str] = ()) -> NDArray[np.uint8]:
    """Blocks side by side, (height, width, 3) uint8.

    Images are shown pixel by pixel; those of fewer than 32 rows are enlarged by a whole factor,
    without smoothing.

    Args:
        blocks: with the same number of rows each, of images of one size.
        names: of the rows, or none; long ones are cut.

    Raises:
        ValueError: no blocks, no images, images of several sizes, or blocks with other numbers of
            rows.
    """
    if not blocks or len({len(block.rows) for block in blocks}) != 1:
        raise ValueError(
            f"a sheet needs blocks of as many rows, got {[len(block.rows) for block in blocks]}"
        )
    side = blocks[0].rows[0].shape[1]
    factor = math.ceil(SMALLEST / side)
    grids = [tile([_enlarged(row, factor) for row in block.rows], GAP * factor) for block in blocks]
    if len({grid.shape[0] for grid in grids}) != 1:
        raise ValueError("a sheet needs images of one size")
    font = ImageFont.load_default(size=min(max(side * factor // 4, 13), 24))
    assert isinstance(font, ImageFont.FreeTypeFont), "Pillow's wheels bring FreeType"
    shown = [name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…" for name in names]
    left = MARGIN + (max(_width(font, name) for name in shown) + MARGIN if shown else 0)
    top = 2 * MARGIN + sum(font.getmetrics())
    widths = [
        max(grid.shape[1], _width(font, block.caption))
        for grid, block in zip(grids, blocks, strict=True)
    ]
    size = (
        left + sum(widths) + BETWEEN * (len(grids) - 1) + MARGIN,
        top + grids[0].shape[0] + MARGIN,
    )
    paper = Image.new("RGB", size, (PAPER,) * 3)
    draw = ImageDraw.Draw(paper)
    for i, name in enumerate(shown):
        middle = top + i * (side + GAP) * factor + side * factor // 2
        draw.text((left - MARGIN, middle), name, INK, font, anchor="rm")
    for grid, block, width in zip(grids, blocks, widths, strict=True):
        draw.text((left, top - MARGIN), block.caption, INK, font, anchor="ld")
        paper.paste(Image.fromarray(grid), (left, top))
        left += width + BETWEEN
    return np.asarray(paper).copy()


def _enlarged(images: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    return images.repeat(factor, axis=1).repeat(factor, axis=2)


def _width(font: ImageFont.FreeTypeFont, text: str) -> int:
    return math.ceil(font.getlength(text))
