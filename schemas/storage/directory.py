"""Where a dataset lies: the root and the few file operations preprocessing needs, wherever it is.

Everything is named relative to the dataset's root, with `/`. Files appear whole or not at all;
large ones are written to a staging folder on a local disk first, and then published.
"""

import hashlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from schemas.errors import UserError
from schemas.storage.objects import STORES
from schemas.storage.paths import absolute, join, store_of
from schemas.storage.store import GONE, STAGING, WORK, ObjectStore
from schemas.storage.url import is_url

__all__ = ["GONE", "STAGING", "WORK", "Directory", "open_directory", "reported"]

_HASH_BYTES = 16 << 20  # read at once


@dataclass(frozen=True)
class Directory:
    """A dataset root. Travels to workers pickled.

    Its methods do as those of `ObjectStore` do that have the same names; files are named relative
    to the root.

    Attributes:
        root: absolute path or URL.
    """

    root: str

    @property
    def store(self) -> ObjectStore:
        """Where it lies, as this process reaches it."""
        return store_of(self.root)

    @property
    def patience(self) -> float:
        return self.store.patience

    def path(self, name: str = "") -> str:
        """Path or URL of a file."""
        return join(self.root, name) if name else self.root

    def exists(self, name: str) -> bool:
        return self.store.exists(self.path(name))

    def names(self, name: str = "") -> list[str]:
        return self.store.names(self.path(name))

    def read(self, name: str, start: int = 0, length: int = -1) -> bytes:
        return self.store.read(self.path(name), start, length)

    def write(self, name: str, data: bytes | str) -> None:
        self.store.write(self.path(name), _bytes(data))

    def create(self, name: str, data: bytes | str) -> None:
        self.store.create(self.path(name), _bytes(data))

    def matches(self, name: str, size: int, sha256: str) -> bool:
        """Whether a file is there with this size and checksum.

        A file of another size is not read, nor an object that `publish` left there: its checksum
        lies beside it, and it appeared whole.
        """
        try:
            facts = self.store.facts(self.path(name))
            if facts.size != size:
                return False
            return (facts.sha256 or self._sha256(name, size)) == sha256
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return False

    def _sha256(self, name: str, size: int) -> str:
        digest = hashlib.sha256()
        for start in range(0, size, _HASH_BYTES):
            digest.update(self.read(name, start, _HASH_BYTES))
        return digest.hexdigest()

    def staging(self) -> AbstractContextManager[Path]:
        return self.store.staging(self.root)

    def publish(self, staged: Path, name: str) -> None:
        self.store.publish(self.path(name), staged)

    def remove(self, name: str) -> None:
        """Delete a file; no error where there is none."""
        self.store.delete(self.path(name))

    def clear_work(self) -> None:
        self.store.clear_work(self.root)

    def sweep(self) -> None:
        self.store.sweep(self.root)

    def trouble(self, error: OSError) -> str:
        return self.store.trouble(self.root, error)


def _bytes(data: bytes | str) -> bytes:
    return data.encode() if isinstance(data, str) else data


@contextmanager
def reported(directory: Directory) -> Iterator[None]:
    """Turns an OSError of a directory into the line that says so."""
    try:
        yield
    except OSError as error:
        raise UserError(directory.trouble(error)) from error


def open_directory(where: str) -> Directory:
    """The dataset root a person named: a local path, or a URL of an object store, which is asked
    whether it is there.

    Raises:
        UserError: no such store, nothing that can be reached there, a file where a directory should
            be, or a URL with a slash too few.
    """
    kind, colon, rest = where.partition(":")
    if colon and kind in STORES and not is_url(where):
        raise UserError(f"{where} is no URL; did you mean {kind}://{rest.lstrip('/')}?")
    directory = Directory(absolute(where))
    with reported(directory):
        obstacle = directory.store.obstacle(directory.root)
    if obstacle is not None:
        named = where if str(obstacle) == directory.root else obstacle
        raise UserError(f"{named} is a file; give a directory for the dataset")
    return directory
