"""Where a dataset lies: the few file operations preprocessing needs, behind one small class.

Everything is named relative to the dataset's root, files appear whole or not at all, and shards are written on a local
disk first and then published. Another kind of root (an object store) is another class with these methods.
"""

import os
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path

from schemas.errors import UserError
from schemas.files import sha256_file, write_atomic

WORK = ".work"  # what only a run in progress needs; gone once the manifest stands
STAGING = f"{WORK}/staging"
GONE = f"{WORK}.gone."  # what WORK is called while it is deleted


@dataclass(frozen=True)
class LocalDirectory:
    """A dataset root on a local (or mounted) disk. `root` is absolute."""

    root: str

    def local(self, name: str = "") -> Path:
        """The path of a file, for readers that want one."""
        return Path(self.root, name)

    def exists(self, name: str = "") -> bool:
        """Whether the file or directory is there."""
        return self.local(name).exists()

    def names(self, name: str = "") -> list[str]:
        """Sorted entries of a directory; empty where there is none."""
        path = self.local(name)
        return sorted(entry.name for entry in path.iterdir()) if path.is_dir() else []

    def read(self, name: str, start: int = 0, length: int = -1) -> bytes:
        """Bytes of a file, or a range of them."""
        with open(self.local(name), "rb") as file:
            file.seek(start)
            return file.read(length)

    def write(self, name: str, data: bytes | str) -> None:
        """Write a small file atomically, making its directory when needed."""
        path = self.local(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, data)

    def matches(self, name: str, size: int, sha256: str) -> bool:
        """Whether a file is there with this size and checksum; the size is looked at first."""
        path = self.local(name)
        return path.is_file() and path.stat().st_size == size and sha256_file(path) == sha256

    def stage(self, name: str) -> Path:
        """A fresh local path to write a large file to, before `publish`."""
        directory = self.local(STAGING)
        directory.mkdir(parents=True, exist_ok=True)
        return directory / f"{name}.{uuid.uuid4().hex}"

    def publish(self, staged: Path, name: str) -> None:
        """Move a staged file to its place, atomically and durably."""
        with open(staged, "rb") as file:
            os.fsync(file.fileno())
        staged.replace(self.local(name))

    def remove(self, name: str) -> None:
        """Delete a file or a whole directory; no error where there is none."""
        path = self.local(name)
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)

    def clear_work(self) -> None:
        """Delete `WORK` with the lock in it. Only for the holder of the lock, as the last thing.

        It goes by another name first: another command may come at any time, and make `WORK` anew for its own lock.
        """
        gone = self.local(f"{GONE}{uuid.uuid4().hex}")
        self.local(WORK).rename(gone)
        shutil.rmtree(gone, ignore_errors=True)  # what stays is swept by the next command

    def sweep(self) -> None:
        """Delete what a killed run left half-written or half-deleted. Only for the holder of the lock."""
        self.remove(STAGING)
        for path in self.local().glob(f"{GONE}*"):
            shutil.rmtree(path, ignore_errors=True)
        for directory in (self.local(), self.local(WORK)):
            for path in directory.glob(".*.tmp"):
                path.unlink(missing_ok=True)


def cannot_write(directory: LocalDirectory, error: OSError) -> str:
    """The line that says so, for any file of a dataset."""
    return f"cannot write {directory.root} ({error.strerror or error}); make room and repeat the command"


def open_directory(where: str) -> LocalDirectory:
    """The dataset root a person named.

    Raises:
        UserError: another file system than the local one, or a file where a directory should be.
    """
    scheme, separator, _ = where.partition("://")
    if separator:
        raise UserError(f"{where}: datasets can be written to local directories only, not to {scheme}://")
    path = Path(where).expanduser().absolute()
    if path.exists() and not path.is_dir():
        raise UserError(f"{where} is a file; give a directory for the dataset")
    return LocalDirectory(str(path))
