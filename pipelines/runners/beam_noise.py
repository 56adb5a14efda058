"""Silences Beam's log and the traces of its threads, where a command reports in a line of its own.

Beam logs, for one, that an object store's optional client is not installed, and threads that lose
their worker print a traceback each.
"""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_log() -> Iterator[None]:
    """Silences the log up to warnings, for Beam's first import and for reading its options."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


@contextmanager
def quiet_threads() -> Iterator[None]:
    """Drops the traces of Beam's threads that lose their worker: the run fails and is reported."""
    before = threading.excepthook

    def hook(arguments: threading.ExceptHookArgs) -> None:
        kind = arguments.exc_type.__module__.partition(".")[0]
        if kind != "grpc" and "Worker subprocess exited" not in str(arguments.exc_value):
            before(arguments)

    threading.excepthook = hook
    yield
    # not after a failure: the threads of that run are still to tell of it
    threading.excepthook = before
