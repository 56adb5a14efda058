"""The embedded digits as a source: the same pixels and labels as the table that they come from."""

import pickle

import numpy as np
import pytest

from pipelines.sources import open_source
from pipelines.sources.digits import DigitsSource
from pipelines.sources.embedded import load_digits
from schemas.errors import UserError


def test_digits_hold_both_splits_and_ten_classes() -> None:
    train, test = open_source("embedded:digits", "train"), open_source("embedded:digits", "test")
    assert (len(list(train.index())), len(list(test.index()))) == (4000, 1000)
    assert train.classes == tuple("0123456789")
    item = list(train.index())[12]
    assert item.key == "train/00012"
    image = train.read(item).pixels
    assert image.shape == (32, 32, 3)
    assert image.dtype == np.uint8
    assert set(np.bincount([item.label for item in train.index()])) == {400}


def test_an_item_is_a_row_of_the_table() -> None:
    images, labels = load_digits("test")
    source = pickle.loads(pickle.dumps(DigitsSource("test")))
    items = list(source.index())
    assert [item.label for item in items] == labels.tolist()
    assert {item.size for item in items} == {32 * 32 * 3}
    assert len({item.key for item in items}) == len(items)
    for row in (0, 17, len(items) - 1):
        pixels, label = source.read(items[row])
        assert label == labels[row]
        np.testing.assert_array_equal(pixels, images[row])


def test_a_digit_that_was_looked_up_before_is_the_same_object() -> None:
    source = DigitsSource("test")
    item = next(source.index())
    first, again = source.read(item).pixels, DigitsSource("test").read(item).pixels
    assert np.shares_memory(first, again), "the table is read once a process, not once a digit"


def test_another_split_is_one_line() -> None:
    with pytest.raises(UserError) as caught:
        DigitsSource("validation")
    assert str(caught.value) == ("embedded:digits has no split 'validation'; it has train and test")
