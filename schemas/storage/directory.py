"""Where a dataset lies: the few file operations preprocessing needs, behind one small class.

Everything is named relative to the dataset's root, with `/`. Files appear whole or not at all;
large ones are written to a staging folder on a local disk first, and then published.
"""

import errno
import os
import shutil
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from schemas.errors import UserError
from schemas.files import sha256_file, write_atomic
from schemas.storage.paths import absolute, is_url
from schemas.storage.temporary import sweep_temporary

WORK = ".work"  # what only a run in progress needs; gone once the manifest stands
STAGING = f"{WORK}/staging"
_STORES = ("s3", "gs")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # a disk, a quota, or what a file may be
GONE = f"{WORK}.gone."  # what WORK is called while it is deleted


class Directory(ABC):
    """A dataset root, local or in an object store. Travels to workers pickled. Methods raise
    OSError when it fails.

    Attributes:
        root: absolute path or URL.
        patience: seconds between two looks at its contents, for who watches it.
    """

    root: str
    patience: ClassVar[float]

    @abstractmethod
    def exists(self, name: str) -> bool:
        """Whether the file is there."""

    @abstractmethod
    def names(self, name: str = "") -> list[str]:
        """Sorted entries of a folder; empty where there is none."""

    @abstractmethod
    def read(self, name: str, start: int = 0, length: int = -1) -> bytes:
        """Bytes of a file, or a range of them."""

    @abstractmethod
    def write(self, name: str, data: bytes | str) -> None:
        """Write a small file whole, making its folder when needed."""

    @abstractmethod
    def create(self, name: str, data: bytes | str) -> None:
        """Write a small file that must not be there yet. Of several that try, one succeeds.

        Raises:
            FileExistsError: it is there.
        """

    @abstractmethod
    def matches(self, name: str, size: int, sha256: str) -> bool:
        """Whether a file is there with this size and checksum."""

    @abstractmethod
    def staging(self) -> AbstractContextManager[Path]:
        """A fresh local folder to write large files to before they are published; deleted at the
        end.
        """

    @abstractmethod
    def publish(self, staged: Path, name: str) -> None:
        """Bring a staged file to its place, whole or not at all, and durably."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Delete a file; no error where there is none."""

    @abstractmethod
    def clear_work(self) -> None:
        """Delete `WORK`, with the lock in it where there is one: the last thing a command does."""

    @abstractmethod
    def sweep(self) -> None:
        """Delete what a killed run left half-written or half-deleted: the first thing the holder of
        the lock does.
        """

    @abstractmethod
    def trouble(self, error: OSError) -> str:
        """One line about a method, or the writing of a staged file, that failed, and what to do."""


@dataclass(frozen=True)
class LocalDirectory(Directory):
    """A dataset root on a local (or mounted) disk."""

    root: str
    patience: ClassVar[float] = 0.5

    def local(self, name: str = "") -> Path:
        """The path of a file, for readers that want one."""
        return Path(self.root, name)

    def exists(self, name: str) -> bool:
        """See `Directory`."""
        return self.local(name).exists()

    def names(self, name: str = "") -> list[str]:
        """See `Directory`."""
        path = self.local(name)
        return sorted(entry.name for entry in path.iterdir()) if path.is_dir() else []

    def read(self, name: str, start: int = 0, length: int = -1) -> bytes:
        """See `Directory`."""
        with open(self.local(name), "rb") as file:
            file.seek(start)
            return file.read(length)

    def write(self, name: str, data: bytes | str) -> None:
        """See `Directory`."""
        path = self.local(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, data)

    def create(self, name: str, data: bytes | str) -> None:
        """See `Directory`. Only for the holder of the lock: the kernel is not asked to decide."""
        if self.exists(name):
            raise FileExistsError(name)
        self.write(name, data)

    def matches(self, name: str, size: int, sha256: str) -> bool:
        """See `Directory`. The file is read, unless its size tells already."""
        path = self.local(name)
        return path.is_file() and path.stat().st_size == size and sha256_file(path) == sha256

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """See `Directory`. On the same disk, so that a file is published by renaming it."""
        folder = self.local(f"{STAGING}/{uuid.uuid4().hex}")
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def publish(self, staged: Path, name: str) -> None:
        """See `Directory`."""
        with open(staged, "rb") as file:
            os.fsync(file.fileno())
        path = self.local(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        staged.replace(path)

    def remove(self, name: str) -> None:
        """See `Directory`."""
        self.local(name).unlink(missing_ok=True)

    def clear_work(self) -> None:
        """See `Directory`. Only for the holder of the lock.

        It goes by another name first: another command may come at any time, and make `WORK` anew
        for its own lock.
        """
        gone = self.local(f"{GONE}{uuid.uuid4().hex}")
        self.local(WORK).rename(gone)
        shutil.rmtree(gone, ignore_errors=True)  # what stays is swept by the next command

    def sweep(self) -> None:
        """See `Directory`."""
        sweep_temporary()
        for path in (self.local(STAGING), *self.local().glob(f"{GONE}*")):
            shutil.rmtree(path, ignore_errors=True)
        for folder in (self.local(), self.local(WORK)):
            for path in folder.glob(".*.tmp"):
                path.unlink(missing_ok=True)

    def trouble(self, error: OSError) -> str:
        """See `Directory`."""
        # The writer of shards raises without a number, but with the system's words.
        full = error.errno in _FULL or any(os.strerror(number) in str(error) for number in _FULL)
        advice = (
            "make room and repeat the command"
            if full
            else "mend that or choose another directory, then repeat"
        )
        return f"cannot write {self.root} ({error.strerror or error}); {advice}"


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
    if colon and kind in _STORES and not is_url(where):
        raise UserError(f"{where} is no URL; did you mean {kind}://{rest.lstrip('/')}?")
    root = absolute(where)
    if is_url(root):
        from schemas.storage.remote import open_remote

        return open_remote(root)
    directory = LocalDirectory(root)
    with reported(directory):
        for path in (Path(root), *Path(root).parents):
            if path.exists() and not path.is_dir():
                raise UserError(
                    f"{where if path == Path(root) else path} is a file; give a directory for the "
                    "dataset"
                )
    return directory
