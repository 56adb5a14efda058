"""`embedded:digits`: the handwritten digits that need no download, as a source."""

from collections.abc import Iterator
from functools import cache

import numpy as np
from numpy.typing import NDArray

from pipelines.sources.base import Item, Picture, Source
from pipelines.sources.embedded import DIGIT_NAMES, SPLITS, load_digits
from schemas.errors import UserError


class DigitsSource(Source):
    """5,000 MNIST digits, 32x32, three equal channels: 4000 in split train, 1000 in test.

    Raises:
        UserError: another split.
    """

    def __init__(self, split: str):
        if split not in SPLITS:
            raise UserError(
                f"embedded:digits has no split {split!r}; it has {' and '.join(SPLITS)}"
            )
        self.descriptor = "embedded:digits"
        self.split = split

    @property
    def classes(self) -> tuple[str, ...]:
        return DIGIT_NAMES

    def index(self) -> Iterator[Item]:
        images, labels = _digits(self.split)
        for row, label in enumerate(labels):
            yield Item(f"{self.split}/{row:05d}", int(label), images[row].nbytes, str(row))

    def read(self, item: Item) -> Picture:
        return Picture(_digits(self.split)[0][int(item.location)], item.label)


@cache
def _digits(split: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    return load_digits(split)
