"""A range of a file, local or on an object store, as a file with random access."""

import io
import os
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING

from schemas.storage import paths
from schemas.storage.url import is_url

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

# What one request reads: little where the reader jumps from header to header over long members,
# more and more where what it wants next lies near.
SMALLEST = 4 << 10
LARGEST = 1 << 20


class RangeFile(io.RawIOBase):
    """Bytes [start, stop) of a file, seekable, read-only, with one block of read-ahead.

    The block doubles while the reader goes on close to where it was, and is small again after a
    jump. Not for several threads at once.

    Args:
        path: a local path or URL.
        start: first byte.
        stop: byte after the last; None for the end of the file.

    Raises:
        OSError: the file cannot be opened.
    """

    def __init__(self, path: str, start: int = 0, stop: int | None = None):
        super().__init__()
        self._start = start
        self._stop = paths.facts(path).size if stop is None else stop
        self._position = 0
        self._block = b""
        self._block_at = 0
        self._ahead = SMALLEST
        self._descriptor = None if is_url(path) else os.open(path, os.O_RDONLY)
        self._fetch = _local(self._descriptor) if self._descriptor is not None else _remote(path)

    @property
    def size(self) -> int:
        """Bytes in the range."""
        return self._stop - self._start

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}[whence]
        self._position = max(0, origin + offset)
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        left = max(0, self.size - self._position)
        wanted = left if size is None or size < 0 else min(size, left)
        inside = self._position - self._block_at
        if not 0 <= inside <= inside + wanted <= len(self._block):
            self._load(wanted)
            inside = 0
        data = self._block[inside : inside + wanted]
        self._position += len(data)
        return data

    def readall(self) -> bytes:
        return self.read()

    def readinto(self, buffer: "WriteableBuffer") -> int:
        view = memoryview(buffer).cast("B")
        data = self.read(len(view))
        view[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if self._descriptor is not None and not self.closed:
            os.close(self._descriptor)
        super().close()

    def __enter__(self) -> "RangeFile":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ):
        self.close()

    def _load(self, wanted: int) -> None:
        near = 0 <= self._position - self._block_at <= 2 * len(self._block)
        self._ahead = min(2 * self._ahead, LARGEST) if near else SMALLEST
        length = min(max(wanted, self._ahead), self.size - self._position)
        self._block_at = self._position
        self._block = self._fetch(self._start + self._position, length) if length > 0 else b""


def _local(descriptor: int) -> Callable[[int, int], bytes]:
    def fetch(offset: int, length: int) -> bytes:
        return os.pread(descriptor, length, offset)

    return fetch


def _remote(path: str) -> Callable[[int, int], bytes]:
    def fetch(offset: int, length: int) -> bytes:
        return paths.read(path, offset, length)

    return fetch
