"""Sheets: every image in its place, words beside and never upon them."""

import numpy as np
import pytest
from numpy.typing import NDArray

from evaluation.preview.sheet import BETWEEN, MARGIN, Panel, sheet
from pipelines.grid import GAP, PAPER, tile

SIDE = 32


def _rows(rows: int, columns: int, side: int = SIDE, seed: int = 0) -> list[NDArray[np.uint8]]:
    shape = (rows, columns, side, side, 3)
    return list(np.random.default_rng(seed).integers(0, 200, shape, dtype=np.uint8))


def _holds(picture: NDArray[np.uint8], grid: NDArray[np.uint8]) -> bool:
    """Whether the grid lies at the bottom right of the picture."""
    height, width = grid.shape[:2]
    return bool((picture[-MARGIN - height : -MARGIN, -MARGIN - width : -MARGIN] == grid).all())


def test_blocks_lie_side_by_side() -> None:
    left, right = _rows(3, 4, seed=1), _rows(3, 5, seed=2)
    picture = sheet([Panel("a", left), Panel("b", right)])
    first, second = tile(left), tile(right)
    assert _holds(picture, second)
    assert _holds(picture[:, : -second.shape[1] - BETWEEN], first)
    assert picture.shape[1] == first.shape[1] + second.shape[1] + BETWEEN + 2 * MARGIN
    assert (picture.dtype, picture.flags.writeable) == (np.uint8, True)


def test_names_are_beside_the_middle_of_their_rows() -> None:
    rows = _rows(3, 4)
    plain, named = sheet([Panel("", rows)]), sheet([Panel("", rows)], ["a", "", "c"])
    assert _holds(named, tile(rows))
    beside = named[
        -MARGIN - tile(rows).shape[0] : -MARGIN, : named.shape[1] - plain.shape[1] + MARGIN
    ]
    inked = [(beside[i * (SIDE + GAP) :][:SIDE] != PAPER).any() for i in range(3)]
    assert inked == [True, False, True]


def test_a_caption_is_above_its_block_and_has_room() -> None:
    rows = _rows(2, 1)
    plain, told = (
        sheet([Panel("", rows)]),
        sheet([Panel("a caption wider than the images under it", rows)]),
    )
    assert told.shape[0] == plain.shape[0]
    assert told.shape[1] > plain.shape[1]
    height = tile(rows).shape[0] + MARGIN
    assert (plain[:-height] == PAPER).all()
    assert (told[:-height] != PAPER).any()
    assert (told[-height - MARGIN : -height] == PAPER).all()
    assert (told[:-height, -MARGIN:] == PAPER).all()
    assert (told[-height:, MARGIN : MARGIN + SIDE] == plain[-height:, MARGIN : MARGIN + SIDE]).all()


def test_long_names_are_cut() -> None:
    rows = _rows(1, 1)
    long = sheet([Panel("", rows)], ["a name longer than anyone wants to read " * 5])
    assert long.shape[1] < 250
    assert _holds(long, tile(rows))


@pytest.mark.parametrize(("side", "factor"), [(8, 4), (20, 2), (32, 1), (64, 1)])
def test_small_images_are_enlarged_without_smoothing(side: int, factor: int) -> None:
    rows = _rows(2, 3, side)
    big = [np.kron(row, np.ones((1, factor, factor, 1), np.uint8)) for row in rows]
    assert _holds(sheet([Panel("", rows)]), tile(big, GAP * factor))


def test_blocks_that_do_not_fit_together() -> None:
    with pytest.raises(ValueError, match="as many rows"):
        sheet([Panel("", _rows(2, 1)), Panel("", _rows(3, 1))])
    with pytest.raises(ValueError, match="one size"):
        sheet([Panel("", _rows(2, 1)), Panel("", _rows(2, 1, side=40))])
    with pytest.raises(ValueError, match=r"got \[\]"):
        sheet([])
