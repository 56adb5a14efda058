"""`parquet:PATH`: Parquet files in the image layout of Hugging Face datasets.

A column of images (a struct of `bytes` and `path`, or plain bytes) and, if there are classes, one
of whole numbers or texts. A row group can only be read as a whole, so its rows stay together in a
dataset.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any

from pipelines.images import ImageError
from pipelines.sources import arrow_files
from pipelines.sources.base import Item, Picture, Source
from pipelines.sources.keeper import Keeper
from pipelines.sources.label_values import Label, Labels, none_labelled
from pipelines.sources.listed import FLAT_CLASS
from pipelines.sources.names import is_hidden, readable
from pipelines.sources.options import SourceOptions
from pipelines.sources.parquet_columns import Columns, find_columns
from pipelines.sources.parquet_files import (
    RowGroup,
    Table,
    check_embedded,
    footer,
    open_table,
    row_groups,
)
from pipelines.sources.parquet_splits import of_split
from pipelines.sources.refused import check_usable, refused
from schemas.errors import UserError, reason_of
from schemas.storage import paths
from schemas.storage.url import is_url

SUFFIX = ".parquet"
GROUPS_KEPT = 2  # row groups in memory: one that is read, and the next one, begun by threads ahead
STREAMS_KEPT = 64  # files of Arrow whose heads are in memory


class ParquetSource(Source):
    """Images in a Parquet file or a folder of them.

    Class names are those in the schema's metadata (`huggingface`), else the texts, or the numbers
    from 0 to the highest label.

    Args:
        path: a `.parquet` or `.arrow` file or a folder, local or a URL.
        split: picks the files of a folder that are of it, where names tell a split.
        options: which columns are read, and whether there are classes.

    Raises:
        UserError: nothing there on the local disk. An object store is asked when it is listed.
    """

    def __init__(self, path: str, split: str, options: SourceOptions):
        self._path = paths.absolute(path)
        if not is_url(self._path) and not paths.exists(self._path):
            raise UserError(f"{path}: no such file or folder")
        self.descriptor = self._place + options.suffix
        self._options = options
        self.split = split
        self._kept = Keeper(GROUPS_KEPT)
        self._streams = Keeper(STREAMS_KEPT)

    def __reduce__(self) -> tuple[type["ParquetSource"], tuple[str, str, SourceOptions]]:
        return type(self), (self._path, self.split, self._options)

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the files' names, sizes and footers."""
        digest = hashlib.sha256()
        for name in self._names:
            with _reported(self._file(name)):
                size, tail = footer(self._file(name))
            digest.update(json.dumps([readable(name), size]).encode() + b"\n" + tail)
        return digest.hexdigest()

    @property
    def classes(self) -> tuple[str, ...]:
        if self._columns.label is None:
            return (FLAT_CLASS,)
        if self._columns.names is not None:
            return self._columns.names
        return self._labels.names or (FLAT_CLASS,)

    def index(self) -> Iterator[Item]:
        usable, unlabelled = 0, 0
        for name in self._names:
            shown = readable(name)
            for group, modified in self._row_groups(name):
                together = f"{shown}:{group.number}"
                for row, label in enumerate(group.labels):
                    key = f"{shown}/{group.first + row:07d}"
                    number = None if label is None else self._number(label)
                    if number is not None:
                        usable += 1
                        yield Item(
                            key, number, 0, f"{group.number}:{row}:{name}", modified, together
                        )
                    else:
                        unlabelled += 1
                        reason = "no label" if label is None else f"no class of the label {label}"
                        yield refused(key, reason, modified=modified, group=together)
        if unlabelled and not usable:
            raise none_labelled(self._place, unlabelled)
        if not usable:
            raise UserError(f"{self._place}: no row in {len(self._names)} files")

    def read(self, item: Item) -> Picture:
        check_usable(item)
        group, row, name = item.location.split(":", 2)
        images = self._kept.get((name, group), lambda: self._read_images(name, int(group)))
        value = images[int(row)].as_py()
        data = value["bytes"] if isinstance(value, dict) else value
        if data is None:
            path = value.get("path") if isinstance(value, dict) else None
            raise ImageError(
                f"no bytes, only the path {readable(path)}" if path else "no image in this row"
            )
        return Picture(self._options.decode(data), item.label)

    def _read_images(self, name: str, group: int) -> Any:
        """The column of images of a row group."""
        path = self._file(name)
        if path.lower().endswith(arrow_files.SUFFIX):  # its heads are many, and are kept
            table = self._streams.get(path, lambda: arrow_files.open_arrow(path))
            return self._column(table, path, group)
        with open_table(path) as table:
            return self._column(table, path, group)

    def _column(self, table: Table, path: str, group: int) -> Any:
        import pyarrow

        try:
            return table.column(group, self._columns.image)
        except (pyarrow.ArrowException, OSError) as error:
            raise OSError(f"row group {group} of {path} cannot be read: {error}") from error

    def _row_groups(self, name: str) -> Iterator[tuple[RowGroup, int]]:
        """Row groups of a file, and when the file last changed."""
        path, columns = self._file(name), self._columns
        with _reported(path):
            modified = paths.facts(path).modified
            for group in row_groups(path, columns, self._options):
                yield group, modified

    def _number(self, label: Label) -> int | None:
        """The class of a label, None where it is none."""
        names = self._columns.names
        if names is None or isinstance(label, str):
            return 0 if self._columns.label is None else self._labels.number(label)
        return label if 0 <= label < len(names) else None

    @cached_property
    def _labels(self) -> Labels:
        groups = (group for name in self._names for group, _ in self._row_groups(name))
        labels = (label for group in groups for label in group.labels if label is not None)
        return Labels(labels, f"{self._place}: the column {self._columns.label}")

    @cached_property
    def _columns(self) -> Columns:
        path = self._file(self._names[0])
        with _reported(path):
            with open_table(path) as table:
                columns = find_columns(path, table.schema, self._options)
            check_embedded(path, columns.image)
        return columns

    @cached_property
    def _names(self) -> list[str]:
        """Names of the split's files below the path, or the single file's own name."""
        if self._single:
            return [PurePosixPath(self._path).name]
        with _reported(self._path):
            names = [entry.name for entry in paths.entries(self._path) if not is_hidden(entry.name)]
            found = sorted(name for name in names if name.endswith(SUFFIX))
            if not found:
                saved = arrow_files.saved_files(self._path, names, self.split, self._place)
                if saved is not None:
                    return saved
                found = sorted(name for name in names if name.endswith(arrow_files.SUFFIX))
        if not found:
            raise UserError(f"{self._place}: no {SUFFIX} file in it")
        return of_split(found, self.split, self._place)

    @property
    def _place(self) -> str:
        """The source's name without options, for what a person is told."""
        return f"parquet:{self._path}"

    @property
    def _single(self) -> bool:
        return self._path.lower().endswith((SUFFIX, arrow_files.SUFFIX))

    def _file(self, name: str) -> str:
        return self._path if self._single else paths.join(self._path, name)


@contextmanager
def _reported(path: str) -> Iterator[None]:
    """Turns an OSError, while a source is listed, into one line about its path."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({reason_of(error)})") from error
