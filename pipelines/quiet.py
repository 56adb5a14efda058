"""Importing Beam in a command: its import logs that no Google API client is there, which a local run does not miss."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_imports() -> Iterator[None]:
    """Silences the log up to warnings for the imports in its body."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
