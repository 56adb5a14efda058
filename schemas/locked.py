"""One process at a time on a local disk; the kernel frees the lock of one that dies.

Some storage knows no `flock`: Lustre without `-o flock`, NFS with `nolock`, which answer ENOSYS or
ENOLCK. There the locks of POSIX are tried, and where they are not known either, commands go on
after one warning.
"""

import enum
import errno
import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_log = logging.getLogger(__name__)
_told: set[Path] = set()  # folders whose storage has no locks
_UNKNOWN = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP}


class Lock(enum.Enum):
    """What became of asking for a lock."""

    HELD = enum.auto()
    BUSY = enum.auto()  # another process holds it
    UNKNOWN = enum.auto()  # the storage has no locks


def ask_for_lock(handle: int, path: Path, *, wait: bool = False) -> Lock:
    """Lock an open file, for as long as it is open and this process lives.

    A lock of POSIX ends sooner: when this process closes any descriptor of the file. So it should
    be a file that nobody reads.

    Args:
        handle: of the file, open for writing.
        path: of the file, for the warning where its storage has no locks.
        wait: for another process that holds it; it is never BUSY then.

    Raises:
        OSError: as `flock`, but for storage without locks.
    """
    mode = fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB
    for lock in (fcntl.flock, fcntl.lockf):
        try:
            lock(handle, mode)
            return Lock.HELD
        except BlockingIOError:
            return Lock.BUSY
        except OSError as error:
            # POSIX's locks answer EACCES for one that is held, too
            if lock is fcntl.lockf and error.errno == errno.EACCES:
                return Lock.BUSY
            if error.errno not in _UNKNOWN:
                raise
    if path.parent not in _told:
        _told.add(path.parent)
        _log.warning(
            "the storage of %s has no locks; see that no other command works there", path.parent
        )
    return Lock.UNKNOWN


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock that a file stands for; wait, and say so, while another process holds it.

    The file is made when needed, and stays: to delete it would part those who wait from those who
    come.

    Raises:
        OSError: it cannot be made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if ask_for_lock(handle, path) is Lock.BUSY:
            _log.warning("waiting for another command that is at work in %s", path.parent)
            ask_for_lock(handle, path, wait=True)
        yield
    finally:
        os.close(handle)
