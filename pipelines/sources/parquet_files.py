"""What Parquet files in the image layout of Hugging Face datasets tell without an image being
read.
"""

import json
import re
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from pipelines.sources.ranges import RangeFile
from schemas.errors import UserError
from schemas.storage import paths

_PART = re.compile(r"(?P<split>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?:-[0-9a-f]+)?\.parquet")
_END = struct.Struct("<L4s")  # length of the footer, magic
_SHOWN = 3


class Columns(NamedTuple):
    """The columns of a file that count. `names` are those of the classes, None where it does not
    tell them.
    """

    path: str
    image: str
    label: str | None
    names: tuple[str, ...] | None


class RowGroup(NamedTuple):
    """Rows that are stored together: number in the file, number of the first row, labels of all
    (None without).
    """

    number: int
    first: int
    labels: list[int | None]


@contextmanager
def open_parquet(path: str) -> Iterator[Any]:
    """A file by path or URL as a `pyarrow.parquet.ParquetFile`, of which only the footer has been
    read.

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
    """Bytes of a file, and its footer: the schema, and sizes, places and ranges of the columns of
    each row group.
    """
    size = paths.size(path)
    length, magic = _END.unpack(
        paths.read(path, max(0, size - _END.size), _END.size).rjust(_END.size, b"\0")
    )
    if magic != b"PAR1" or length + _END.size > size:
        raise UserError(f"{path}: not a whole Parquet file; fetch it again")
    return size, paths.read(path, size - _END.size - length, length)


def find_columns(path: str) -> Columns:
    """Which columns of a file hold the images and the labels: those named so, or the only ones that
    can be meant.

    Raises:
        UserError: no such column, several, or labels that are not whole numbers.
    """
    import pyarrow.types as kinds

    with open_parquet(path) as file:
        schema = file.schema_arrow
    images = [
        field.name
        for field in schema
        if kinds.is_binary(field.type)
        or kinds.is_large_binary(field.type)
        or (kinds.is_struct(field.type) and field.type.get_field_index("bytes") >= 0)
    ]
    image = _choose(
        "image", images, path, "column of images (a struct with bytes, or bytes)", schema.names
    )
    if image is None:
        raise UserError(
            f"{path}: no column of images (a struct with bytes, or bytes); it has "
            f"{', '.join(schema.names)}"
        )
    label = _label_column(path, schema)
    if label is not None and not kinds.is_integer(schema.field(label).type):
        raise UserError(
            f"{path}: the column {label} holds {schema.field(label).type}; labels must be whole "
            "numbers"
        )
    return Columns(path, image, label, _class_names(schema, label))


def _label_column(path: str, schema: Any) -> str | None:
    classed = [name for name in _features(schema.metadata) if name in schema.names]
    return (
        "label"
        if "label" in schema.names
        else _choose("label", classed, path, "column of labels", schema.names)
    )


def _class_names(schema: Any, label: str | None) -> tuple[str, ...] | None:
    return None if label is None else _features(schema.metadata).get(label)


def row_groups(path: str, columns: Columns) -> Iterator[RowGroup]:
    """The row groups of a file, with their labels.

    Raises:
        UserError: the file lacks one of the columns, has other classes than the one that told them,
            or is damaged.
        OSError: it cannot be read.
    """
    import pyarrow

    with open_parquet(path) as file:
        _check_same(path, file.schema_arrow, columns)
        first = 0
        for number in range(file.num_row_groups):
            rows = file.metadata.row_group(number).num_rows
            labels: list[int | None] = [0] * rows
            if columns.label is not None:
                try:
                    labels = (
                        file.read_row_group(number, columns=[columns.label]).column(0).to_pylist()
                    )
                except (pyarrow.ArrowException, OSError) as error:
                    raise UserError(
                        f"{path}: row group {number} cannot be read ({_brief(error)}); fetch the "
                        "file again"
                    ) from error
            yield RowGroup(number, first, labels)
            first += rows


def _check_same(path: str, schema: Any, columns: Columns) -> None:
    """Refuse a file whose rows do not mean the same as those of the file that `columns` are of."""
    for name in filter(None, (columns.image, columns.label)):
        if name not in schema.names:
            raise UserError(
                f"{path}: has no column {name}, as the first file has; leave out files of another "
                "kind"
            )
    label = columns.label or _label_column(path, schema)
    if label != columns.label:
        raise UserError(
            f"{path}: has a column {label}, and {columns.path} has none; leave out files of "
            "another kind"
        )
    names = _class_names(schema, label)
    if names != columns.names:
        raise UserError(
            f"{path}: {_first_difference(names, columns.names)} {columns.path}; preprocess files "
            "of other classes "
            "into a dataset of their own and join them with `flowtrain data merge`, which goes by "
            "names"
        )


def _first_difference(mine: tuple[str, ...] | None, others: tuple[str, ...] | None) -> str:
    """Where two tables of classes differ; a sentence that the name of the file with the second one
    ends.
    """
    if mine is None or others is None:
        return (
            "names its classes, unlike" if others is None else "does not name its classes, unlike"
        )
    told = [[json.dumps(name) for name in names] for names in (mine, others)]
    rows = enumerate(zip_longest(*told, fillvalue="none"))
    number, (one, other) = next((number, pair) for number, pair in rows if pair[0] != pair[1])
    return f"class {number} is {one}, and {other} in"


def of_split(names: Sequence[str], split: str, where: str) -> list[str]:
    """Those of the files that belong to a split, by names like train-00000-of-00005.parquet; all,
    if none is so named.

    Raises:
        UserError: no such split, it is there in several folders, or one of its files is missing.
    """
    parts = [
        (name, match) for name in names if (match := _PART.fullmatch(PurePosixPath(name).name))
    ]
    if not parts:
        return list(names)
    chosen = [(name, match) for name, match in parts if match["split"] == split]
    if not chosen:
        known = " and ".join(sorted({match["split"] for _, match in parts}))
        raise UserError(f"{where}: no split {split!r}; it has {known} (--split)")
    folders = sorted({str(PurePosixPath(name).parent) for name, _ in chosen})
    if len(folders) > 1:
        shown = " and ".join(folders[:_SHOWN]) + (", ..." if len(folders) > _SHOWN else "")
        raise UserError(
            f"{where}: files of {split!r} are in {len(folders)} folders ({shown}), as those of "
            "several configurations; "
            f"name the one that is meant, like {where}/{folders[-1]}, or take the others out"
        )
    counts = {int(match["count"]) for _, match in chosen}
    if len(counts) > 1:
        raise UserError(
            f"{where}: files of {split!r} cut into {' and '.join(map(str, sorted(counts)))}; keep "
            "one kind"
        )
    missing = sorted(set(range(*counts)) - {int(match["number"]) for _, match in chosen})
    if missing:
        shown = ", ".join(f"{number:05d}" for number in missing[:_SHOWN]) + (
            ", ..." if len(missing) > _SHOWN else ""
        )
        raise UserError(
            f"{where}: of {split!r} the files {shown} are missing ({len(missing)} in all); fetch "
            "them"
        )
    return [name for name, _ in chosen]


def _choose(
    name: str, candidates: Sequence[str], path: str, what: str, columns: Sequence[str]
) -> str | None:
    """The candidate of that name, or the only one; None without any."""
    if name in candidates or len(candidates) < 2:
        return name if name in candidates else next(iter(candidates), None)
    raise UserError(
        f"{path}: more than one {what}: {', '.join(candidates)}; name the right one {name}"
    )


def _features(metadata: dict[bytes, bytes] | None) -> dict[str, tuple[str, ...]]:
    """Names of the classes, by column, as Hugging Face's `datasets` leaves them in the schema."""
    try:
        features = (
            json.loads((metadata or {}).get(b"huggingface", b"{}"))
            .get("info", {})
            .get("features", {})
        )
        return {
            name: tuple(map(str, feature["names"]))
            for name, feature in features.items()
            if isinstance(feature, dict)
            and feature.get("_type") == "ClassLabel"
            and feature.get("names")
        }
    except (ValueError, AttributeError, TypeError):
        return {}


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
