"""What Hugging Face's files tell without an image being read: Parquet, or streams of Arrow."""

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

from pipelines.sources import arrow_files
from pipelines.sources.label_values import Label
from pipelines.sources.options import SourceOptions
from pipelines.sources.parquet_columns import Columns, check_same
from pipelines.sources.ranges import RangeFile
from schemas.errors import UserError
from schemas.storage import paths

_END = struct.Struct("<L4s")  # length of the footer, magic
_MOST_ROWS = 100_000_000  # of a row group, which is read as a whole
_LEAST = 64  # bytes of an image, at least; fewer in a row are none


class RowGroup(NamedTuple):
    """Rows stored together: group number, first row's number, labels (None without)."""

    number: int
    first: int
    labels: list[Label | None]


class Table(Protocol):
    """A file, group of rows by group: its Arrow schema, and how many rows each group has."""

    schema: Any
    rows: list[int]

    def column(self, group: int, name: str) -> Any:
        """A column of a group, as an Arrow array, chunked or not."""
        ...


class ParquetTable:
    """A Parquet file as a `Table`."""

    def __init__(self, file: Any):
        self._file = file
        self.schema = file.schema_arrow
        groups = range(file.num_row_groups)
        self.rows = [file.metadata.row_group(number).num_rows for number in groups]

    def column(self, group: int, name: str) -> Any:
        return self._file.read_row_group(group, columns=[name]).column(0)

    def stored(self, leaf: str) -> int:
        """Bytes of a leaf of a column in the first group."""
        group = self._file.metadata.row_group(0)
        chunks = [group.column(number) for number in range(group.num_columns)]
        return sum(one.total_uncompressed_size for one in chunks if one.path_in_schema == leaf)


@contextmanager
def open_table(path: str) -> Iterator[Table]:
    """A file by path or URL, of which only what tells of the rest has been read.

    Raises:
        UserError: damaged, cut short, or neither Parquet nor Arrow.
        OSError: it cannot be read.
    """
    if path.lower().endswith(arrow_files.SUFFIX):
        yield arrow_files.open_arrow(path)
    else:
        with open_parquet(path) as file:
            yield ParquetTable(file)


@contextmanager
def open_parquet(path: str) -> Iterator[Any]:
    """A `pyarrow.parquet.ParquetFile` by path or URL, of which only the footer has been read.

    Raises:
        UserError: not a Parquet file, damaged or cut short.
        OSError: it cannot be read.
    """
    import pyarrow
    from pyarrow import parquet

    with RangeFile(path) as file:
        try:
            opened = parquet.ParquetFile(pyarrow.PythonFile(file, mode="r"))
        except pyarrow.ArrowInvalid as error:
            raise UserError(
                f"{path}: not a whole Parquet file ({_brief(error)}); fetch it again"
            ) from error
        try:
            yield opened
        finally:
            opened.close()


def footer(path: str) -> tuple[int, bytes]:
    """Size in bytes and footer: the schema, and where each row group's columns lie."""
    if path.lower().endswith(arrow_files.SUFFIX):
        return arrow_files.heads(path)
    size = paths.facts(path).size
    length, magic = _END.unpack(
        paths.read(path, max(0, size - _END.size), _END.size).rjust(_END.size, b"\0")
    )
    if magic != b"PAR1" or length + _END.size > size:
        raise UserError(f"{path}: not a whole Parquet file; fetch it again")
    return size, paths.read(path, size - _END.size - length, length)


def row_groups(path: str, columns: Columns, options: SourceOptions) -> Iterator[RowGroup]:
    """The row groups of a file, with their labels; an empty text is no label.

    Raises:
        UserError: the file lacks one of the columns, has other classes than the one that told them,
            or is damaged.
        OSError: it cannot be read.
    """
    import pyarrow

    with open_table(path) as table:
        check_same(path, table.schema, columns, options)
        first = 0
        for number, rows in enumerate(table.rows):
            if not 0 <= rows <= _MOST_ROWS:
                raise UserError(
                    f"{path}: row group {number} says {rows} rows; fetch the file again"
                )
            labels: list[Label | None] = [0] * rows
            if columns.label is not None:
                try:
                    labels = table.column(number, columns.label).to_pylist()
                except (pyarrow.ArrowException, OSError) as error:
                    raise UserError(
                        f"{path}: row group {number} cannot be read ({_brief(error)}); fetch the "
                        "file again"
                    ) from error
            if columns.text:
                labels = [label or None for label in labels]
            yield RowGroup(number, first, labels)
            first += rows


def check_embedded(path: str, image: str) -> None:
    """Refuse a file whose first rows all hold the paths of images that lie elsewhere.

    The images are read only where they are too small to be any.

    Raises:
        UserError: it is one.
        OSError: it cannot be read.
    """
    import pyarrow.compute

    with open_table(path) as table:
        if not table.rows or not pyarrow.types.is_struct(table.schema.field(image).type):
            return
        stored = table.stored(f"{image}.bytes") if isinstance(table, ParquetTable) else 0
        if stored > _LEAST * table.rows[0]:
            return
        images = table.column(0, image)
        field: Any = pyarrow.compute.struct_field  # pyright: ignore[reportAttributeAccessIssue]
        if field(images, "bytes").null_count < len(images):
            return
        rows = images.to_pylist()
    if rows and all(row and row.get("path") for row in rows):
        raise UserError(
            f"{path}: its images are paths to files elsewhere ({rows[0]['path']}), not bytes; "
            'embed them with datasets, `ds.with_format("arrow").map(datasets.table.'
            "embed_table_storage, batched=True)`, and write it again, or give the folder of images"
        )


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
