"""One command at a time in a local directory.

The kernel drops the lock when its holder dies, however it dies. Object stores have no locks. There
several commands with the same settings may work side by side, on the same bytes; what they have to
ask is only whether the work is still there (`pipelines.dataset.build.ShardedBuild.check_ours`).
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from schemas.errors import UserError, reason_of
from schemas.locked import Lock, ask_for_lock
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
            f"cannot write {path.parent} ({reason_of(error)}); choose another output directory"
        ) from error


def _lies_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


@contextmanager
def held(path: Path, open_file: Callable[[Path], int], refusal: str) -> Iterator[None]:
    """Hold the lock that a file stands for; nobody waits for it.

    Args:
        path: the file.
        open_file: gives an open file descriptor of it, which is closed at the end.
        refusal: the line for who comes second.

    Raises:
        UserError: another process holds it.
    """
    while True:
        handle = open_file(path)
        try:
            if ask_for_lock(handle, path) is Lock.BUSY:
                raise UserError(refusal)
            # Another command may have deleted or replaced the file between our open and our lock.
            if _lies_at(handle, path):
                yield
                return
        finally:
            os.close(handle)


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
    refusal = (
        f"another command is writing {directory.root}; wait for it, or choose another output "
        "directory"
    )
    with held(Path(directory.path(f"{WORK}/lock")), _open, refusal):
        yield
