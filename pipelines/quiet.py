"""Beam talks in the log where a command has nothing to say: of a Google client that a local run does not miss."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_log() -> Iterator[None]:
    """Silences the log up to warnings; for the first import of Beam, and for reading its options."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
