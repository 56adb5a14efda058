"""Beam talks where a command has nothing to say: of a client that nobody misses, or of what is told
in one line.
"""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_log() -> Iterator[None]:
    """Silences the log up to warnings; for the first import of Beam, and for reading its
    options.
    """
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


@contextmanager
def quiet_threads() -> Iterator[None]:
    """Drops the traces of Beam's threads that lose their worker; the run itself fails of it and is
    reported.
    """
    before = threading.excepthook

    def hook(arguments: threading.ExceptHookArgs) -> None:
        kind = arguments.exc_type.__module__.partition(".")[0]
        if kind != "grpc" and "Worker subprocess exited" not in str(arguments.exc_value):
            before(arguments)

    threading.excepthook = hook
    yield
    # not after a failure: the threads of that run are still to tell of it
    threading.excepthook = before
