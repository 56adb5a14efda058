"""Feature networks by name: uint8 images in, features and class logits out."""

import difflib
from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from schemas.errors import UserError


class Extractor(Protocol):
    """A feature network with its weights loaded.

    `digest` is the SHA-256 of the weights, `class_names` the meaning of the logits, in order.
    """

    @property
    def name(self) -> str: ...
    @property
    def dim(self) -> int: ...
    @property
    def digest(self) -> str: ...
    @property
    def class_names(self) -> tuple[str, ...]: ...

    def __call__(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """uint8 (n, H, W, 3) in [0, 255] -> features (n, dim), logits (n, classes); any n >= 1."""
        ...


def _embedded() -> Extractor:
    from evaluation.extractors.embedded import load_embedded

    return load_embedded()


EXTRACTORS: Mapping[str, Callable[[], Extractor]] = {"embedded": _embedded}


def load_extractor(name: str) -> Extractor:
    """Load a feature network; seconds of work, so keep it (`evaluation.models.extractor` does).

    Raises:
        UserError: no such name.
    """
    if name not in EXTRACTORS:
        raise UserError(f"unknown extractor {name!r}{nearest(name, EXTRACTORS)}")
    return EXTRACTORS[name]()


def nearest(name: str, known: Mapping[str, object]) -> str:
    """The end of an error message about a wrong name."""
    matches = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {matches[0]!r}?" if matches else f"; known are {', '.join(known)}"
