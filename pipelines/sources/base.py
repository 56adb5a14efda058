"""What a source of images is: a list of items, and a way to the pixels of each."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipelines.images import ImageError

UNLABELLED = -1  # the label of an item that only its record tells, when it is read


@dataclass(frozen=True, slots=True)
class Item:
    """One image of a source.

    `key` identifies it for good (its path within the source) and is valid UTF-8; `label` indexes
    the source's classes; `size` is in bytes; `location` tells the source itself where the bytes
    are; `modified` is when they last changed, in nanoseconds since 1970, or 0 in a source that
    never changes. Items of one `group` are cheap to read together, and stay together in a dataset;
    "" lets an item lie anywhere.
    """

    key: str
    label: int
    size: int
    location: str
    modified: int = 0
    group: str = ""


class Picture(NamedTuple):
    """What is behind an item: pixels (H, W, 3) uint8 RGB, and the index of its class."""

    pixels: NDArray[np.uint8]
    label: int


class Source(ABC):
    """A set of labelled images.

    Workers receive a pickled copy, or open it again: opening is cheap, listing is not.

    Attributes:
        descriptor: the name that opens it again, from any directory.
        split: the split of the data it stands for.
        fingerprint: identifies the content of a source whose items do not tell it by size and
            label; else "".
    """

    descriptor: str
    split: str
    fingerprint: str = ""

    @property
    @abstractmethod
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the labels. May have to list the source.

        Raises:
            UserError: nothing usable in the source.
        """

    @abstractmethod
    def index(self) -> Iterator[Item]:
        """All items, in any order, not all in memory at once.

        A key that appears twice is listed twice.

        Raises:
            UserError: nothing usable in the source.
        """

    @abstractmethod
    def read(self, item: Item) -> Picture:
        """The picture of an item. Several threads may call this at once.

        Raises:
            ImageError: the image itself is bad.
            OSError: its bytes cannot be had, which says nothing about the image.
        """

    def remarks(self) -> tuple[str, ...]:
        """What whoever makes a dataset of the source should be told, a line each. May have to list
        the source.

        Raises:
            UserError: nothing usable in the source.
        """
        return ()

    def same(self, one: Item, other: Item) -> bool:
        """Whether two items of one key are one image that is listed twice.

        Raises:
            OSError: as `read`.
        """
        return self.content(one) == self.content(other)

    def content(self, item: Item) -> tuple[int, bytes]:
        """What makes an item the image that it is: its class and its pixels, or where there are
        files their bytes; of an unusable one the reason.

        Raises:
            OSError: as `read`.
        """
        try:
            picture = self.read(item)
        except ImageError as error:
            return item.label, error.reason.encode()
        return picture.label, picture.pixels.tobytes()
