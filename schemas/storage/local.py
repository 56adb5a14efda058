"""The local (or mounted) disk."""

import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

from schemas.errors import reason_of
from schemas.files import write_atomic
from schemas.storage.store import GONE, STAGING, WORK, Entry, Facts, ObjectStore

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # a disk, a quota, or what a file may be


class LocalStore(ObjectStore):
    """Files on a local disk. The methods do as `ObjectStore` says; here stands what is special."""

    patience: ClassVar[float] = 0.5
    locks: ClassVar[bool] = True

    def facts(self, path: str) -> Facts:
        status = Path(path).stat()
        return Facts(status.st_size, None, status.st_mtime_ns)

    def exists(self, path: str) -> bool:
        return Path(path).exists()

    def read(self, path: str, offset: int = 0, length: int = -1) -> bytes:
        with open(path, "rb") as file:
            file.seek(offset)
            return file.read(length)

    def entries(self, root: str) -> Iterator[Entry]:
        """See `ObjectStore`. Links are followed, but never in a circle."""
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

    def names(self, folder: str) -> list[str]:
        path = Path(folder)
        return sorted(entry.name for entry in path.iterdir()) if path.is_dir() else []

    def write(self, path: str, data: bytes) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_atomic(Path(path), data)

    def create(self, path: str, data: bytes) -> None:
        """See `ObjectStore`. Only for the holder of the lock: the kernel is not asked to decide."""
        if self.exists(path):
            raise FileExistsError(path)
        self.write(path, data)

    def publish(self, path: str, staged: Path) -> None:
        with open(staged, "rb") as file:
            os.fsync(file.fileno())
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        staged.replace(path)

    def download(self, path: str, local: Path) -> None:
        shutil.copyfile(path, local)

    @contextmanager
    def local_copy(self, path: str) -> Iterator[Path]:
        """See `ObjectStore`. The file itself."""
        yield Path(path)

    def delete(self, path: str) -> None:
        Path(path).unlink(missing_ok=True)

    def obstacle(self, root: str) -> Path | None:
        for path in (Path(root), *Path(root).parents):
            if path.exists() and not path.is_dir():
                return path
        return None

    @contextmanager
    def staging(self, root: str) -> Iterator[Path]:
        """See `ObjectStore`. On the same disk, so that a file is published by renaming it."""
        folder = Path(root, STAGING, uuid.uuid4().hex)
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def clear_work(self, root: str) -> None:
        """See `ObjectStore`. Only for the holder of the lock.

        It goes by another name first: another command may come at any time, and make `WORK` anew
        for its own lock.
        """
        gone = Path(root, f"{GONE}{uuid.uuid4().hex}")
        Path(root, WORK).rename(gone)
        shutil.rmtree(gone, ignore_errors=True)  # what stays is swept by the next command

    def sweep(self, root: str) -> None:
        super().sweep(root)
        for path in (Path(root, STAGING), *Path(root).glob(f"{GONE}*")):
            shutil.rmtree(path, ignore_errors=True)
        for folder in (Path(root), Path(root, WORK)):
            for path in folder.glob(".*.tmp"):
                path.unlink(missing_ok=True)

    def trouble(self, root: str, error: OSError) -> str:
        # The writer of shards raises without a number, but with the system's words.
        full = error.errno in _FULL or any(os.strerror(number) in str(error) for number in _FULL)
        advice = (
            "make room and repeat the command"
            if full
            else "mend that or choose another directory, then repeat"
        )
        return f"cannot write {root} ({reason_of(error)}); {advice}"
