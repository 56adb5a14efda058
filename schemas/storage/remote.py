"""A dataset root in an object store. There are no locks: see docs/object-stores.md for why two runs
do no harm.
"""

import hashlib
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from schemas.errors import UserError
from schemas.files import sha256_file
from schemas.storage import paths
from schemas.storage.directory import WORK, Directory
from schemas.storage.temporary import sweep_temporary, temporary_folder

_HASH_BYTES = 16 << 20  # read at once
_DELETERS = 16


@dataclass(frozen=True)
class RemoteDirectory(Directory):
    """A dataset root at `s3://` or `gs://`. Objects appear whole; machines of one kind write the
    same ones.
    """

    root: str
    patience: ClassVar[float] = 10.0

    def url(self, name: str) -> str:
        """Where a file lies."""
        return paths.join(self.root, name)

    def exists(self, name: str) -> bool:
        """See `Directory`."""
        return paths.exists(self.url(name))

    def names(self, name: str = "") -> list[str]:
        """See `Directory`."""
        where = self.url(name) if name else self.root
        return sorted({entry.name.partition("/")[0] for entry in paths.entries(where)})

    def read(self, name: str, start: int = 0, length: int = -1) -> bytes:
        """See `Directory`."""
        return paths.read(self.url(name), start, length)

    def write(self, name: str, data: bytes | str) -> None:
        """See `Directory`."""
        paths.write(self.url(name), _bytes(data))

    def create(self, name: str, data: bytes | str) -> None:
        """See `Directory`. The store decides (a conditional write)."""
        paths.create(self.url(name), _bytes(data))

    def matches(self, name: str, size: int, sha256: str) -> bool:
        """See `Directory`. The object is not read: `publish` left its checksum beside it, and it
        appeared whole.

        Only an object that something else has copied there, and left that note behind, is read
        through.
        """
        try:
            there = paths.facts(self.url(name))
            if there.size != size:
                return False
            return (there.sha256 or self._sha256(name, size)) == sha256
        except FileNotFoundError:
            return False

    def _sha256(self, name: str, size: int) -> str:
        digest = hashlib.sha256()
        for start in range(0, size, _HASH_BYTES):
            digest.update(self.read(name, start, _HASH_BYTES))
        return digest.hexdigest()

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """See `Directory`. In the temporary folder of the machine."""
        with temporary_folder() as folder:
            yield folder

    def publish(self, staged: Path, name: str) -> None:
        """See `Directory`."""
        paths.upload(staged, self.url(name), sha256_file(staged))

    def remove(self, name: str) -> None:
        """See `Directory`."""
        paths.delete(self.url(name))

    def clear_work(self) -> None:
        """See `Directory`. The index goes first: by it another run sees that there is nothing left
        to do.
        """
        found = [f"{WORK}/{entry.name}" for entry in paths.entries(self.url(WORK))]
        indices = [name for name in found if name.endswith("/index.jsonl")]
        self._remove_all(indices)
        self._remove_all(set(found) - set(indices))

    def _remove_all(self, names: Iterable[str]) -> None:
        with ThreadPoolExecutor(_DELETERS) as pool:
            list(pool.map(self.remove, names))

    def sweep(self) -> None:
        """See `Directory`. Nothing half-written is ever seen in the store; uploads staged on this
        machine are.
        """
        sweep_temporary()

    def trouble(self, error: OSError) -> str:
        """See `Directory`."""
        if str(error.filename or "").startswith(self.root):
            return (
                f"cannot use {self.root}: {error.strerror or error}; mend it and repeat the command"
            )
        return (
            f"cannot write {tempfile.gettempdir()}, where files for {self.root} are staged "
            f"({error.strerror or error}); make room or set TMPDIR, and repeat the command"
        )


def _bytes(data: bytes | str) -> bytes:
    return data.encode() if isinstance(data, str) else data


def open_remote(root: str) -> RemoteDirectory:
    """The dataset root at a URL; the store is asked for it, so that a wrong name or no permission
    shows at once.

    Raises:
        UserError: no such store or bucket, no permission, or it cannot be reached.
    """
    directory = RemoteDirectory(root)
    try:
        next(paths.entries(root), None)
    except OSError as error:
        raise UserError(directory.trouble(error)) from error
    return directory
