"""Files by path or URL: what a source is read from and a dataset is written to, local, `s3://` or
`gs://`.

All functions raise OSError when the storage fails, FileNotFoundError when nothing is there; an
object store is asked again first, with growing pauses, since it may fail now and then. Beam is
imported only for URLs.
"""

import errno
import os
import random
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from schemas.errors import UserError
from schemas.files import write_atomic
from schemas.storage.objects import Entry, Facts, ObjectStore, object_store

ATTEMPTS = 7
PAUSE = 0.2  # seconds before the second attempt; twice as long before each further one

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_Answer = TypeVar("_Answer")


def is_url(path: str) -> bool:
    """Whether a path names an object store rather than the local disk."""
    return _URL.match(path) is not None


def absolute(path: str) -> str:
    """The path from any directory: `~` expanded, URLs without a trailing slash."""
    return path.rstrip("/") if is_url(path) else str(Path(path).expanduser().absolute())


def join(root: str, name: str) -> str:
    """A file below a root; `name` is relative, with `/`."""
    return f"{root.rstrip('/')}/{name}" if is_url(root) else str(Path(root, name))


def size(path: str) -> int:
    """Bytes of a file."""
    if not is_url(path):
        return Path(path).stat().st_size
    return facts(path).size


def facts(url: str) -> Facts:
    """Size and time of change of an object, and its checksum where `upload` wrote it."""
    return _ask(url, lambda store: store.facts(url))


def exists(path: str) -> bool:
    """Whether there is a file, or a local directory."""
    if not is_url(path):
        return Path(path).exists()
    try:
        size(path)
    except FileNotFoundError:
        return False
    return True


def modified(path: str) -> int:
    """Time of change of a file in ns since 1970; S3 knows seconds only."""
    return facts(path).modified if is_url(path) else Path(path).stat().st_mtime_ns


def read(path: str, offset: int = 0, length: int = -1) -> bytes:
    """Bytes of a file, or `length` bytes from `offset` on; fewer where the file ends."""
    if is_url(path):
        return _ask(path, lambda store: store.read(path, offset, length))
    with open(path, "rb") as file:
        file.seek(offset)
        return file.read(length)


def entries(root: str) -> Iterator[Entry]:
    """Every file below a directory, in any order. Local links are followed, but never in a circle.

    Listed while it is read: a page of an object store is asked for when those before it are used
    up.
    """
    return _remote_entries(root) if is_url(root) else _local_entries(root)


def write(path: str, data: bytes) -> None:
    """Write a small file, whole or not at all; local directories are made when needed."""
    if is_url(path):
        _ask(path, lambda store: store.write(path, data))
        return
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_atomic(Path(path), data)


def create(url: str, data: bytes) -> None:
    """Write a small object unless there is one; of several that try, one succeeds.

    Raises:
        FileExistsError: there is one (perhaps this one: the answer to the first attempt may have
            been lost).
    """
    _ask(url, lambda store: store.create(url, data))


def upload(local: Path, url: str, sha256: str) -> None:
    """Copy a local file to an object, whole or not at all, with a note of its checksum."""
    _ask(url, lambda store: store.upload(local, url, sha256))


def download(path: str, local: Path) -> None:
    """Copy a file or object to a local file."""
    if is_url(path):
        _ask(path, lambda store: store.download(path, local))
    else:
        shutil.copyfile(path, local)


def delete(path: str) -> None:
    """Delete a file; no error where there is none."""
    if is_url(path):
        _ask(path, lambda store: store.delete(path))
    else:
        Path(path).unlink(missing_ok=True)


def _remote_entries(root: str) -> Iterator[Entry]:
    found = _ask(root, lambda store: store.page(root, None))
    yield from found.entries
    while found.more is not None:
        more = found.more
        found = _ask(root, lambda store: store.page(root, more))  # noqa: B023
        yield from found.entries


def _local_entries(root: str) -> Iterator[Entry]:
    pending = [(Path(root), frozenset[tuple[int, int]]())]
    while pending:
        folder, above = pending.pop()
        status = folder.stat()
        identity = (status.st_dev, status.st_ino)
        if identity in above:
            continue
        with os.scandir(folder) as found:
            for entry in found:
                if entry.is_dir():
                    pending.append((Path(entry.path), above | {identity}))
                elif entry.is_file():
                    facts = entry.stat()
                    name = os.path.relpath(entry.path, root).replace(os.sep, "/")
                    yield Entry(name, facts.st_size, facts.st_mtime_ns)


def _ask(url: str, call: Callable[[ObjectStore], _Answer]) -> _Answer:
    """Ask an object store, again when it or the way to it fails; errors become OSErrors.

    Raises:
        FileNotFoundError: 404.
        PermissionError: 401 or 403.
        FileExistsError: 412.
        OSError: it refuses otherwise, or goes on failing.
        UserError: no such kind of store, or its client is not installed.
    """
    store = object_store(url)
    for attempt in range(ATTEMPTS):
        try:
            return call(store)
        except UserError:
            raise
        except Exception as error:
            status = store.status(error)
            if status is None:
                raise
            reason = " ".join(str(error).split())
            if status == 404:
                raise FileNotFoundError(errno.ENOENT, f"not there ({reason})", url) from error
            if status in (401, 403):
                raise PermissionError(errno.EACCES, f"not allowed ({reason})", url) from error
            if status == 412:
                raise FileExistsError(errno.EEXIST, f"there already ({reason})", url) from error
            passing = status == 0 or status in (408, 409, 429) or status >= 500
            if not passing or attempt == ATTEMPTS - 1:
                raise OSError(errno.EIO, f"the object store fails ({reason})", url) from error
        time.sleep(PAUSE * 2**attempt * (1 + random.random()))
    raise AssertionError("unreachable")
