"""Shard files: ArrayRecord, one record a group, written whole and byte for byte the same."""

import os
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from schemas.errors import UserError
from schemas.files import sha256_file
from schemas.manifest import REBUILD, REMAKE

OPTIONS = "group_size:1"  # random access to single records, which is how training reads
_CHUNK = 256


class ShardFile(NamedTuple):
    """What was written: number of records, size of the file in bytes, hex SHA-256 of the file."""

    records: int
    bytes: int
    sha256: str


class ShardWriter:
    """Writes serialized records to a local file; `close` returns the file's facts.

    Raises:
        OSError: the file cannot be written, for example because the disk is full.
    """

    def __init__(self, path: Path):
        self._path = path
        self._records = 0
        self._writer = ArrayRecordWriter(str(path), OPTIONS)

    def write(self, serialized: bytes) -> None:
        """Append one record."""
        with _as_os_error():
            self._writer.write(serialized)
        self._records += 1

    def close(self) -> ShardFile:
        """Finish the file and read its checksum back."""
        with _as_os_error():
            self._writer.close()
        return ShardFile(self._records, self._path.stat().st_size, sha256_file(self._path))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._writer.is_open():
            with suppress(RuntimeError):  # on the way out of another error, which says more
                self._writer.close()


@contextmanager
def _as_os_error() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # what pybind makes of the library's status
        raise OSError(str(error).partition(";")[0]) from error


def write_shard(path: Path, serialized: Iterable[bytes]) -> ShardFile:
    """Write records to `path` through a temporary file beside it."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with ShardWriter(temporary) as writer:
            for record in serialized:
                writer.write(record)
            written = writer.close()
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return written


def read_shard(path: Path, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
    """The serialized records `start` to `stop` (exclusive, default the end) of a shard, in order.

    Raises:
        UserError: missing, truncated or damaged; the line names the shard and how to rebuild it.
    """
    with _open(path) as reader:
        end = reader.num_records() if stop is None else min(stop, reader.num_records())
        for begin in range(start, end, _CHUNK):
            yield from _read(reader, path, begin, min(begin + _CHUNK, end))


def read_some(path: Path, rows: Sequence[int]) -> list[bytes]:
    """The serialized records at `rows` of a shard, in that order; raises as `read_shard`."""
    with _open(path) as reader:
        return [
            record
            for start in range(0, len(rows), _CHUNK)
            for record in _read(reader, path, rows[start : start + _CHUNK])
        ]


def _read(reader: ArrayRecordReader, path: Path, *where: Any) -> list[bytes]:
    try:
        records = reader.read(*where)
    except Exception as error:  # pybind translates an absl status into whatever is nearest
        raise _damaged(path) from error
    if any(record is None for record in records):
        raise _damaged(path)
    return records


def count_records(path: Path) -> int:
    """Number of records of a shard. Raises `UserError` as `read_shard`."""
    with _open(path) as reader:
        return reader.num_records()


@contextmanager
def _open(path: Path) -> Iterator[ArrayRecordReader]:
    if not path.is_file():
        raise UserError(f"{path}: the shard is missing; {REMAKE}")
    reader = ArrayRecordReader(str(path))
    try:
        if not reader.ok():  # such a reader would claim to hold 0 records
            raise _damaged(path)
        yield reader
    finally:
        # closing a damaged file raises too, and would hide the line about it
        with suppress(Exception):
            reader.close()


def _damaged(path: Path) -> UserError:
    return UserError(f"{path}: the shard is truncated or damaged; {REBUILD}")
