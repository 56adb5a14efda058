"""Files by path or URL: what a source is read from and a dataset is written to, local, `s3://` or
`gs://`.

All functions raise OSError when the storage fails, FileNotFoundError when nothing is there; an
object store is asked again first, with growing pauses, since it may fail now and then.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from schemas.storage.local import LocalStore
from schemas.storage.objects import object_store
from schemas.storage.store import Entry, Facts, ObjectStore
from schemas.storage.url import is_url
from schemas.storage.user_cache import expanded

_LOCAL = LocalStore()


def absolute(path: str) -> str:
    """The path from any directory: `~` expanded, URLs without a trailing slash."""
    return path.rstrip("/") if is_url(path) else str(expanded(path).absolute())


def join(root: str, name: str) -> str:
    """A file below a root; `name` is relative, with `/`."""
    return f"{root.rstrip('/')}/{name}" if is_url(root) else str(Path(root, name))


def store_of(path: str) -> ObjectStore:
    """Where a path leads.

    Raises:
        UserError: no such kind of store, no bucket, or its client is not installed.
    """
    return object_store(path) if is_url(path) else _LOCAL


def facts(path: str) -> Facts:
    """Size and time of change of a file, and its checksum where a store noted one."""
    return store_of(path).facts(path)


def exists(path: str) -> bool:
    """Whether there is a file, or a local directory."""
    return store_of(path).exists(path)


def read(path: str, offset: int = 0, length: int = -1) -> bytes:
    """Bytes of a file, or `length` bytes from `offset` on; fewer where the file ends."""
    return store_of(path).read(path, offset, length)


def entries(root: str) -> Iterator[Entry]:
    """Every file below a directory, in any order, listed while it is read. Local links are
    followed, but never in a circle.
    """
    return store_of(root).entries(root)


def write(path: str, data: bytes) -> None:
    """Write a small file, whole or not at all; local directories are made when needed."""
    store_of(path).write(path, data)


def download(path: str, local: Path) -> None:
    """Copy a file or object to a local file."""
    store_of(path).download(path, local)


def local_copy(path: str) -> AbstractContextManager[Path]:
    """A local file with the same content, for as long as the context lasts: a local file itself,
    an object downloaded.
    """
    return store_of(path).local_copy(path)


def delete(path: str) -> None:
    """Delete a file; no error where there is none."""
    store_of(path).delete(path)
