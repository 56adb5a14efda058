"""Arrow streams, as `datasets.save_to_disk` writes them: their batches, by their heads alone.

A stream is a row of messages, each a head (a flatbuffer that tells its kind and how many bytes
follow) and a body. https://arrow.apache.org/docs/format/Columnar.html#encapsulated-message-format
"""

import struct
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from pipelines.sources.parquet_splits import named_split
from pipelines.sources.ranges import RangeFile
from schemas.errors import UserError
from schemas.json_text import parse_json
from schemas.storage import paths
from schemas.storage.url import is_url

SUFFIX = ".arrow"
STATE = "state.json"
_PREFIX = struct.Struct("<Ii")  # a mark, and bytes of the head
_MARK = 0xFFFFFFFF
_SCHEMA, _BATCH = 1, 3  # kinds of messages; 2 is a dictionary
# Fields of a message and of a batch, by their place in the table.
_KIND, _TABLE, _BODY = 1, 2, 3
_ROWS = 0


class _Message(NamedTuple):
    offset: int
    kind: int
    head: bytes
    body: int
    rows: int


class ArrowTable:
    """A stream, batch by batch; see `open_arrow`."""

    def __init__(self, path: str, messages: Sequence[_Message]):
        import pyarrow

        self._path = path
        schema = messages[0]
        self.schema = pyarrow.ipc.read_schema(pyarrow.py_buffer(_framed(schema.head)))
        self._batches = [message for message in messages if message.kind == _BATCH]
        self.rows = [batch.rows for batch in self._batches]

    def column(self, group: int, name: str) -> Any:
        """A column of a batch; of a local file only its own bytes are read."""
        import pyarrow

        batch = self._batches[group]
        length = _PREFIX.size + len(batch.head) + batch.body
        if is_url(self._path):
            data = pyarrow.py_buffer(paths.read(self._path, batch.offset, length))
        else:
            with pyarrow.memory_map(self._path) as file:
                file.seek(batch.offset)
                data = file.read_buffer(length)  # no copy: pages of other columns stay unread
        if data.size < length:
            raise OSError(f"{self._path} is shorter than it was when it was listed")
        return pyarrow.ipc.read_record_batch(data, self.schema).column(name)


def open_arrow(path: str) -> ArrowTable:
    """A stream by path or URL, of which only the heads have been read; nothing stays open.

    Raises:
        UserError: not an Arrow stream, cut short, or with dictionaries.
        OSError: it cannot be read.
    """
    with RangeFile(path) as file:
        return ArrowTable(path, list(_messages(file, path)))


def heads(path: str) -> tuple[int, bytes]:
    """Size in bytes, and all heads: the schema, and where the parts of each batch lie."""
    with RangeFile(path) as file:
        return file.size, b"".join(message.head for message in _messages(file, path))


def saved_files(root: str, names: Sequence[str], split: str, where: str) -> list[str] | None:
    """The files of a dataset that was saved to disk, or of its split; None where there is none.

    Args:
        root: the folder.
        names: of all files below it.
        split: which of several; a folder is named for each.
        where: the source, for what is told of it.

    Raises:
        UserError: no such split, or a file is missing.
        OSError: it cannot be read.
    """
    folders = [str(PurePosixPath(name).parent) for name in names if _is_state(name)]
    if not folders:
        return None
    folder = "." if "." in folders else named_split(folders, split, where)
    prefix = "" if folder == "." else f"{folder}/"
    try:
        state = parse_json(paths.read(paths.join(root, f"{prefix}{STATE}")))
        files = [f"{prefix}{one['filename']}" for one in state["_data_files"]]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{where}/{prefix}{STATE}: damaged ({error}); save it again") from error
    missing = [name for name in files if name not in set(names)]
    if missing or not files:
        raise UserError(
            f"{where}: {STATE} names {len(files)} files, of which {len(missing)} are missing "
            f"({', '.join(missing[:3])}); fetch them"
        )
    return files


def _is_state(name: str) -> bool:
    return PurePosixPath(name).name == STATE


def _messages(file: RangeFile, path: str) -> Iterator[_Message]:
    offset, first = 0, True
    while True:
        file.seek(offset)
        prefix = file.read(_PREFIX.size)
        if len(prefix) < _PREFIX.size:
            raise UserError(f"{path}: cut short at byte {file.size}; fetch it again")
        mark, length = _PREFIX.unpack(prefix)
        if mark != _MARK or length < 0:
            raise UserError(f"{path}: not an Arrow stream, or damaged at byte {offset}")
        if length == 0 and not first:
            return
        message = _message(file.read(length), offset, path)
        if (message.kind == _SCHEMA) != first or message.kind not in (_SCHEMA, _BATCH):
            raise UserError(
                f"{path}: holds a message of kind {message.kind} at byte {offset}, such as a "
                "dictionary; write the dataset as Parquet"
            )
        offset += _PREFIX.size + length + message.body
        yield message
        first = False


def _message(head: bytes, offset: int, path: str) -> _Message:
    try:
        table = struct.unpack_from("<I", head)[0]
        kind = _field(head, table, _KIND, "<B")
        body = _field(head, table, _BODY, "<q")
        rows = 0
        if kind == _BATCH:
            place = _place(head, table, _TABLE)
            rows = _field(head, place + struct.unpack_from("<I", head, place)[0], _ROWS, "<q")
    except struct.error as error:
        raise UserError(f"{path}: not an Arrow stream, or damaged at byte {offset}") from error
    if body < 0 or rows < 0:
        raise UserError(f"{path}: not an Arrow stream, or damaged at byte {offset}")
    return _Message(offset, kind, head, body, rows)


def _field(head: bytes, table: int, number: int, form: str) -> int:
    """A number of a flatbuffer's table; 0 where it is left out."""
    place = _place(head, table, number)
    return struct.unpack_from(form, head, place)[0] if place else 0


def _place(head: bytes, table: int, number: int) -> int:
    """Where a field of a flatbuffer's table is; 0 where it is left out."""
    fields = table - struct.unpack_from("<i", head, table)[0]
    size = struct.unpack_from("<H", head, fields)[0]
    entry = 4 + 2 * number
    inside = struct.unpack_from("<H", head, fields + entry)[0] if entry < size else 0
    return table + inside if inside else 0


def _framed(head: bytes) -> bytes:
    return _PREFIX.pack(_MARK, len(head)) + head
