"""Heavy models, loaded on first use and once a process: Beam's threads share them."""

import functools
import threading

from evaluation.extractors import PUBLISHED, Extractor, Weights, load_extractor

_LOADING = threading.Lock()  # functools.cache alone would load twice when two threads ask at once


@functools.cache
def _extractor(name: str, prepare: str, weights: Weights) -> Extractor:
    return load_extractor(name, prepare, weights)


def extractor(name: str, prepare: str = "", weights: Weights = PUBLISHED) -> Extractor:
    """The feature network of a name. Raises `UserError` as `load_extractor`."""
    with _LOADING:
        return _extractor(name, prepare, weights)
