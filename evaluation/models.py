"""Heavy models, loaded on first use and once a process: Beam's threads share them."""

import functools
import threading

from evaluation.extractors import Extractor, load_extractor

_LOADING = threading.Lock()  # functools.cache alone would load twice when two threads ask at once


@functools.cache
def _extractor(name: str) -> Extractor:
    return load_extractor(name)


def extractor(name: str) -> Extractor:
    """The feature network of a name. Raises `UserError` for an unknown one."""
    with _LOADING:
        return _extractor(name)
