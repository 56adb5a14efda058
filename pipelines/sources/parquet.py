"""`parquet:PATH`: Parquet files in the image layout of Hugging Face datasets.

A column of images (a struct of `bytes` and `path`, or plain bytes) and, if there are classes, one
of whole numbers. A row group can only be read as a whole, so its rows stay together in a dataset.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any

from pipelines.images import ImageError, decode_image
from pipelines.sources.base import Item, Picture, Source
from pipelines.sources.keeper import Keeper
from pipelines.sources.listed import FLAT_CLASS
from pipelines.sources.names import readable
from pipelines.sources.parquet_files import (
    Columns,
    RowGroup,
    find_columns,
    footer,
    of_split,
    open_parquet,
    row_groups,
)
from pipelines.sources.refused import check_usable, refused
from schemas.errors import UserError, reason_of
from schemas.storage import paths

SUFFIX = ".parquet"
GROUPS_KEPT = 2  # row groups in memory: one that is read, and the next one, begun by threads ahead


class ParquetSource(Source):
    """Images in a Parquet file or a folder of them.

    Class names are those in the schema's metadata (`huggingface`), else the numbers from 0 to the
    highest label.

    Args:
        path: a `.parquet` file or a folder, local or a URL.
        split: picks the files of a folder whose names begin with it, where names tell a split.

    Raises:
        UserError: nothing there on the local disk. An object store is asked when it is listed.
    """

    def __init__(self, path: str, split: str):
        self._path = paths.absolute(path)
        if not paths.is_url(self._path) and not paths.exists(self._path):
            raise UserError(f"{path}: no such file or folder")
        self.descriptor = f"parquet:{self._path}"
        self.split = split
        self._kept = Keeper(GROUPS_KEPT)

    def __reduce__(self) -> tuple[type["ParquetSource"], tuple[str, str]]:
        return type(self), (self._path, self.split)

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
        return self._classes

    def index(self) -> Iterator[Item]:
        for name in self._names:
            shown = readable(name)
            for group, modified in self._row_groups(name):
                together = f"{shown}:{group.number}"
                for row, label in enumerate(group.labels):
                    key = f"{shown}/{group.first + row:07d}"
                    if label is not None and 0 <= label < len(self._classes):
                        yield Item(
                            key, label, 0, f"{group.number}:{row}:{name}", modified, together
                        )
                    else:
                        reason = "no label" if label is None else f"no class of the label {label}"
                        yield refused(key, reason, modified=modified, group=together)

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
        return Picture(decode_image(data), item.label)

    def _read_images(self, name: str, group: int) -> Any:
        """The column of images of a row group."""
        import pyarrow

        with open_parquet(self._file(name)) as file:
            try:
                return file.read_row_group(group, columns=[self._columns.image]).column(0)
            except (pyarrow.ArrowException, OSError) as error:
                raise OSError(
                    f"row group {group} of {self._file(name)} cannot be read: {error}"
                ) from error

    def _row_groups(self, name: str) -> Iterator[tuple[RowGroup, int]]:
        """Row groups of a file, and when the file last changed."""
        path, columns = self._file(name), self._columns
        with _reported(path):
            modified = paths.facts(path).modified
            for group in row_groups(path, columns):
                yield group, modified

    @cached_property
    def _classes(self) -> tuple[str, ...]:
        if self._columns.label is None:
            return (FLAT_CLASS,)
        if self._columns.names is not None:
            return self._columns.names
        groups = (group for name in self._names for group, _ in self._row_groups(name))
        highest = max(
            (label for group in groups for label in group.labels if label is not None), default=-1
        )
        return tuple(map(str, range(highest + 1))) or (FLAT_CLASS,)

    @cached_property
    def _columns(self) -> Columns:
        path = self._file(self._names[0])
        with _reported(path):
            return find_columns(path)

    @cached_property
    def _names(self) -> list[str]:
        """Names of the split's files below the path, or the single file's own name."""
        if self._single:
            return [PurePosixPath(self._path).name]
        with _reported(self._path):
            found = sorted(
                entry.name for entry in paths.entries(self._path) if entry.name.endswith(SUFFIX)
            )
        if not found:
            raise UserError(f"{self.descriptor}: no {SUFFIX} file in it")
        return of_split(found, self.split, self.descriptor)

    @property
    def _single(self) -> bool:
        return self._path.lower().endswith(SUFFIX)

    def _file(self, name: str) -> str:
        return self._path if self._single else paths.join(self._path, name)


@contextmanager
def _reported(path: str) -> Iterator[None]:
    """Turns an OSError, while a source is listed, into one line about its path."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({reason_of(error)})") from error
