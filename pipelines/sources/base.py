"""What a source of images is: a list of items, and a way to the pixels of each."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Item:
    """One image of a source.

    `key` identifies it for good (its path within the source) and is valid UTF-8; `label` indexes the source's classes;
    `size` is in bytes; `location` tells the source itself where the bytes are; `modified` is when they last changed, in
    nanoseconds since 1970, or 0 in a source that never changes.
    """

    key: str
    label: int
    size: int
    location: str
    modified: int = 0


class Source(ABC):
    """A set of labelled images. Workers receive a pickled copy, or open it again: opening is cheap, listing is not.

    Attributes:
        descriptor: the name that opens it again, from any directory.
        split: the split of the data it stands for.
    """

    descriptor: str
    split: str

    @property
    @abstractmethod
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the labels. May have to list the source.

        Raises:
            UserError: nothing usable in the source.
        """

    @abstractmethod
    def index(self) -> list[Item]:
        """All items, in the same order every time. A key that appears twice is listed twice.

        Raises:
            UserError: nothing usable in the source.
        """

    @abstractmethod
    def read(self, item: Item) -> NDArray[np.uint8]:
        """The pixels of an item, (H, W, 3) RGB.

        Raises:
            ImageError: the image itself is bad.
            OSError: its bytes cannot be had, which says nothing about the image.
        """
