"""One command at a time in a directory. The kernel drops the lock when its holder dies, however it dies."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pipelines.storage import WORK, LocalDirectory
from schemas.errors import UserError

_ATTEMPTS = 10


def _open(path: Path) -> int:
    try:
        for _ in range(_ATTEMPTS):
            path.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):  # a holder that finished has just cleared the directory away
                return os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise UserError(f"cannot write {path.parent} ({error.strerror}); choose another output directory") from error


def _lies_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


@contextmanager
def exclusive(directory: LocalDirectory) -> Iterator[None]:
    """Hold the lock of a dataset directory, which is made when needed.

    Raises:
        UserError: another command holds it, or nothing can be written there.
    """
    path = directory.local(f"{WORK}/lock")
    while True:
        handle = _open(path)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(
                    f"another command is writing {directory.root}; wait for it, or choose another output directory"
                ) from None
            # Whoever held it may have finished and deleted the file between our open and our lock.
            if _lies_at(handle, path):
                yield
                return
        finally:
            os.close(handle)
