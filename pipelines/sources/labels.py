"""How images of a tree of named files get their classes: by folder, by a list of names, or not."""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping

from pipelines.images import ImageError
from pipelines.sources.base import UNLABELLED
from schemas.errors import UserError

FLAT_CLASS = "all"
MAX_CLASSES = 1 << 17  # what lists may name; ImageNet-21k has 21,841


class Labelling(ABC):
    """The classes, and which of them an image belongs to.

    Attributes:
        classes: names in the order of the labels.
        unknown: label of an image that has none, by which the index tells it from one that has.
        remark: what whoever uses such classes should be told; "" for nothing.
    """

    classes: tuple[str, ...]
    unknown: int = 0
    remark: str = ""

    @abstractmethod
    def label(self, name: str) -> int:
        """Class of the image of that key.

        Raises:
            ImageError: it has none.
        """


class OneClass(Labelling):
    """All images are one class."""

    def __init__(self, remark: str = ""):
        self.classes = (FLAT_CLASS,)
        self.remark = remark

    def label(self, name: str) -> int:
        return 0


class ByFolder(Labelling):
    """The first folder of a name is its class.

    Args:
        folders: all of them, or none in a flat tree, which is one class.
    """

    def __init__(self, folders: Iterable[str]):
        self.classes = tuple(sorted(folders)) or (FLAT_CLASS,)
        self._labels = {name: label for label, name in enumerate(self.classes)}
        self.remark = _buckets(self.classes)

    def label(self, name: str) -> int:
        top, separator, _ = name.partition("/")
        return self._labels[top] if separator else 0


class ByName(Labelling):
    """Classes by a list of all images.

    Args:
        classes: names in the order of the labels.
        labels: by key; None of an image that is listed without one.
        file: what the list is called, for messages.
    """

    unknown = UNLABELLED

    def __init__(self, classes: tuple[str, ...], labels: Mapping[str, int | None], file: str):
        self.classes = classes
        self._labels = labels
        self._file = file

    def label(self, name: str) -> int:
        label = self._labels.get(name, UNLABELLED)
        if label == UNLABELLED:
            raise ImageError(f"not in {self._file}")
        if label is None:
            raise ImageError(f"{self._file} gives it no label")
        return label


def _buckets(classes: tuple[str, ...]) -> str:
    """A remark on folders that look like those of programs that put a thousand files into each.

    One digit is left alone: digits are called so.
    """
    widths = {len(name) for name in classes}
    numbers = all(re.fullmatch(r"[0-9]{2,}", name) for name in classes)
    if len(classes) < 2 or len(widths) > 1 or not numbers:
        return ""
    return (
        f"the classes are folders called {classes[0]}, {classes[1]}"
        f"{', ...' if len(classes) > 2 else ''}: such folders often mean nothing but so many files "
        "each; --classes none makes all images one class"
    )


def numbered(highest: int, where: str) -> tuple[str, ...]:
    """Classes that are numbers, from 0 to the highest label.

    Raises:
        UserError: more than can be meant; `where` begins the line.
    """
    if highest >= MAX_CLASSES:
        raise UserError(
            f"{where}: label {highest} is beyond the {MAX_CLASSES} classes allowed; give the "
            "classes numbers from 0 on, or ignore labels with --classes none"
        )
    return tuple(map(str, range(highest + 1)))
