"""Folders on the local temporary disk that outlive no command: gone at the end, or swept away after
a SIGKILL.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from schemas.locked import Lock, ask_for_lock

_PREFIX = "flowtrain-work-"
_LOCK = "lock"


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A fresh folder below `tempfile.gettempdir()` (TMPDIR), deleted at the end.

    Its owner holds a lock in it, which the kernel drops when the process dies, so that
    `sweep_temporary` can tell what is left over from what is in use.
    """
    handle = None
    while handle is None:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
        handle = _lock(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)


def _lock(folder: Path) -> int | None:
    """None where another command has just swept the folder away, in the moment when nobody held
    it.
    """
    try:
        handle = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    except FileNotFoundError:
        return None
    busy = ask_for_lock(handle, folder / _LOCK) is Lock.BUSY
    if not busy and (folder / _LOCK).exists():
        return handle
    os.close(handle)
    return None


def sweep_temporary() -> None:
    """Delete the folders whose owners were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(OSError):  # in use, of another user, or being deleted by another command
            _sweep(folder)


def _sweep(folder: Path) -> None:
    if not (folder / _LOCK).exists():
        folder.rmdir()  # killed before it locked anything; raises while anything else is in there
        return
    handle = os.open(folder / _LOCK, os.O_RDWR)
    try:
        # Nothing else will do: without locks nobody knows whose folder it is.
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder)
    finally:
        os.close(handle)
