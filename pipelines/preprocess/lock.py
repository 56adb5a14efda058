"""One command at a time in a local directory. The kernel drops the lock when its holder dies,
however it dies.

Object stores have no locks. There several commands with the same settings may work side by side, on
the same bytes; what they have to ask is only whether the work is still there (`check_ours`).
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pipelines.preprocess.index import INDEX_NAME
from pipelines.preprocess.settings import Settings, read_settings
from schemas.errors import UserError
from schemas.storage.directory import WORK, Directory

_ATTEMPTS = 10


def _open(path: Path) -> int:
    try:
        for _ in range(_ATTEMPTS):
            path.parent.mkdir(parents=True, exist_ok=True)
            # a holder that finished has just cleared the directory away
            with suppress(FileNotFoundError):
                return os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise UserError(
            f"cannot write {path.parent} ({error.strerror}); choose another output directory"
        ) from error


def _lies_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


@contextmanager
def exclusive(directory: Directory) -> Iterator[None]:
    """Hold the lock of a dataset directory, which is made when needed. In an object store there is
    none to hold.

    Raises:
        UserError: another command holds it, or nothing can be written there.
    """
    if not directory.store.locks:
        yield
        return
    path = Path(directory.path(f"{WORK}/lock"))
    while True:
        handle = _open(path)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(
                    f"another command is writing {directory.root}; wait for it, or choose another "
                    "output directory"
                ) from None
            # Whoever held it may have finished and deleted the file between our open and our lock.
            if _lies_at(handle, path):
                yield
                return
        finally:
            os.close(handle)


def check_ours(directory: Directory, settings: Settings) -> None:
    """Ask before anything is published whether it is still wanted: settings and index are there.

    They are not where another command has finished the dataset meanwhile, or somebody has deleted
    it and begun another one while a worker of ours, cut off from its command, was still at work.

    Raises:
        UserError: they are not.
        OSError: the storage fails.
    """
    if read_settings(directory) != settings or not directory.exists(
        f"{settings.work}/{INDEX_NAME}"
    ):
        raise UserError(
            f"{directory.root} was finished or begun anew by another command meanwhile; repeat the "
            "command"
        )
