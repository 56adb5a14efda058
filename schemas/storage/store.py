"""The one interface of all storage: S3, Google Cloud Storage, a local disk.

WORK, STAGING and GONE are names below a dataset's root that never belong to the dataset.
"""

import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar, NamedTuple

from schemas.errors import reason_of
from schemas.storage.temporary import sweep_temporary, temporary_folder

WORK = ".work"  # of a run in progress; gone once the manifest stands
STAGING = f"{WORK}/staging"
GONE = f"{WORK}.gone."  # the name of WORK, with more behind it, while it is deleted
_DELETERS = 16


class Entry(NamedTuple):
    """A file: its name relative to where the listing began (with `/`), bytes, time of change in ns
    since 1970.
    """

    name: str
    size: int
    modified: int


class Facts(NamedTuple):
    """What a store tells of a file without reading it.

    Its bytes, the hex SHA-256 where `ObjectStore.publish` noted one, and the time of change in ns
    since 1970 (S3 knows seconds only).
    """

    size: int
    sha256: str | None
    modified: int = 0


class ObjectStore(ABC):
    """Files by path or URL, which appear whole or not at all, and the care of a dataset's root.

    Methods raise OSError when the storage fails, FileNotFoundError when nothing is there. Those
    that are not abstract are right for an object store; a disk has its own.

    Attributes:
        patience: seconds between two looks at a folder, for who watches it.
        locks: whether a root is locked by the one command that writes there. Object stores have no
            locks: see docs/object-stores.md for why two commands do no harm.
    """

    patience: ClassVar[float] = 10.0
    locks: ClassVar[bool] = False

    @abstractmethod
    def facts(self, path: str) -> Facts:
        """Size, checksum and time of change of a file."""

    @abstractmethod
    def read(self, path: str, offset: int = 0, length: int = -1) -> bytes:
        """Bytes `offset` to `offset + length` (to the end when negative); fewer at the end of the
        file.
        """

    @abstractmethod
    def entries(self, root: str) -> Iterator[Entry]:
        """Every file below a directory, in any order, listed while it is read."""

    @abstractmethod
    def write(self, path: str, data: bytes) -> None:
        """Write a small file; its folder is made when needed."""

    @abstractmethod
    def create(self, path: str, data: bytes) -> None:
        """Write a small file that must not be there yet. Of several that try, one succeeds.

        Raises:
            FileExistsError: there is one (in an object store perhaps this one: the answer to the
                first attempt may have been lost).
        """

    @abstractmethod
    def publish(self, path: str, staged: Path) -> None:
        """Bring a file of any size from a folder of `staging` to its place, durably."""

    @abstractmethod
    def download(self, path: str, local: Path) -> None:
        """Copy a file to a local one."""

    @abstractmethod
    def delete(self, path: str) -> None:
        """Delete a file; no error where there is none."""

    def exists(self, path: str) -> bool:
        """Whether there is a file, or a local directory."""
        try:
            self.facts(path)
        except FileNotFoundError:
            return False
        return True

    def names(self, folder: str) -> list[str]:
        """Sorted entries of a folder; empty where there is none."""
        return sorted({entry.name.partition("/")[0] for entry in self.entries(folder)})

    @contextmanager
    def local_copy(self, path: str) -> Iterator[Path]:
        """A local file with the same content, for as long as the context lasts."""
        with temporary_folder() as folder:
            local = folder / path.rpartition("/")[2]
            self.download(path, local)
            yield local

    def obstacle(self, root: str) -> Path | None:
        """The file that stands where a root, or a folder above it, should be; None where none does.

        An object store is asked for the root, so that a wrong name or no permission shows at once.
        """
        next(self.entries(root), None)
        return None

    @contextmanager
    def staging(self, root: str) -> Iterator[Path]:
        """A fresh local folder to write large files to before they are published; deleted at the
        end.
        """
        with temporary_folder() as folder:
            yield folder

    def clear_work(self, root: str) -> None:
        """Delete `WORK`, with the lock in it where there is one: the last act of a command.

        The index goes first: by it another run sees that there is nothing left to do.
        """
        work = f"{root}/{WORK}"
        found = {f"{work}/{entry.name}" for entry in self.entries(work)}
        indices = {url for url in found if url.endswith("/index.jsonl")}
        self._delete_all(indices)
        self._delete_all(found - indices)

    def _delete_all(self, paths: Iterable[str]) -> None:
        with ThreadPoolExecutor(_DELETERS) as pool:
            list(pool.map(self.delete, paths))

    def sweep(self, root: str) -> None:
        """Delete what a killed command left half-written or half-deleted on this machine: the first
        act of the holder of the lock.
        """
        sweep_temporary()

    def trouble(self, root: str, error: OSError) -> str:
        """One line about a method, or the writing of a staged file, that failed, and what to do."""
        if str(error.filename or "").startswith(root):
            return f"cannot use {root}: {reason_of(error)}; mend it and repeat the command"
        return (
            f"cannot write {tempfile.gettempdir()}, where files for {root} are staged "
            f"({reason_of(error)}); make room or set TMPDIR, and repeat the command"
        )
