"""Many small images as one picture."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8
from numpy.typing import NDArray

from schemas.errors import UserError, reason_of
from schemas.files import write_atomic
from schemas.png import encode_png
from schemas.storage.place import check_writable_place

GAP = 2
PAPER = 255


def tile(
    rows: Sequence[UInt8[np.ndarray, "_ _ _ 3"]], gap: int = GAP
) -> UInt8[np.ndarray, "H W 3"]:
    """Rows of images (n_i, H, W, 3) uint8 on white: (rows * (H + gap) - gap, ..., 3).

    Raises:
        ValueError: no images, or images of several sizes.
    """
    sizes = {row.shape[1:3] for row in rows if len(row)}
    if len(sizes) != 1:
        raise ValueError(f"a grid needs images of one size, got {sorted(sizes)}")
    height, width = sizes.pop()
    columns = max(len(row) for row in rows)
    shape = len(rows) * (height + gap) - gap, columns * (width + gap) - gap, 3
    canvas = np.full(shape, PAPER, np.uint8)
    for i, row in enumerate(rows):
        for j, image in enumerate(row):
            top, left = i * (height + gap), j * (width + gap)
            canvas[top : top + height, left : left + width] = image
    return canvas


def by_class(
    images: UInt8[np.ndarray, "n h w c"], labels: Int[np.ndarray, " n"], columns: int
) -> list[UInt8[np.ndarray, "_ h w c"]]:
    """One row a class that occurs, in order of the labels, with its first `columns` images."""
    return [images[labels == label][:columns] for label in np.unique(labels)]


def check_place(path: str) -> None:
    """See that a picture can be written, before the work for it is done.

    Raises:
        UserError: no local path, a device or a pipe, no PNG, or a directory that is missing or
            cannot be written to.
    """
    check_writable_place(path)
    if Path(path).suffix.lower() != ".png":
        raise UserError(f"{path}: the picture is a PNG; give a name that ends in .png")
    folder = Path(path).parent
    if not folder.is_dir():
        raise UserError(f"{path}: there is no directory {folder} for the picture; make it first")
    try:
        # permissions alone do not tell of a disk that is read-only
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise _unwritable(path, error) from error


def write_png(path: Path, rows: Sequence[NDArray[np.uint8]]) -> None:
    """Write a grid whole or not at all; the format is PNG.

    Raises:
        UserError: it cannot be written.
    """
    try:
        write_atomic(path, encode_png(tile(rows)))
    except OSError as error:
        raise _unwritable(str(path), error) from error


def _unwritable(path: str, error: OSError) -> UserError:
    return UserError(
        f"{path}: the picture cannot be written there ({reason_of(error)}); choose another place"
    )
