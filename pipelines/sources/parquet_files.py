"""What Hugging Face's Parquet files tell without an image being read."""

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
    """The columns of images and labels. `names` are the classes', None where it has none."""

    path: str
    image: str
    label: str | None
    names: tuple[str, ...] | None


class RowGroup(NamedTuple):
    """Rows stored together: group number, first row's number, labels (None without)."""

    number: int
    first: int
    labels: list[int | None]


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
    size = paths.facts(path).size
    length, magic = _END.unpack(
        paths.read(path, max(0, size - _END.size), _END.size).rjust(_END.size, b"\0")
    )
    if magic != b"PAR1" or length + _END.size > size:
        raise UserError(f"{path}: not a whole Parquet file; fetch it again")
    return size, paths.read(path, size - _END.size - length, length)


def find_columns(path: str) -> Columns:
    """The columns that are named image and label, or the only possible ones.

    Raises:
        UserError: no such column, several, or labels that are not whole numbers.
    """
    import pyarrow.types as kinds

    with open_parquet(path) as file:
        schema = file.schema_arrow
    images = [field.name for field in schema if _holds_images(field.type)]
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


def _holds_images(kind: Any) -> bool:
    """Whether a column of this Arrow type may be one of images: bytes, or a struct with bytes."""
    import pyarrow.types as kinds

    if kinds.is_struct(kind):
        return kind.get_field_index("bytes") >= 0
    return kinds.is_binary(kind) or kinds.is_large_binary(kind)


def _label_column(path: str, schema: Any) -> str | None:
    if "label" in schema.names:
        return "label"
    classed = [name for name in _features(schema.metadata) if name in schema.names]
    return _choose("label", classed, path, "column of labels", schema.names)


def _class_names(schema: Any, label: str | None) -> tuple[str, ...] | None:
    if label is None:
        return None
    return _features(schema.metadata).get(label)


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
            "of other classes into a dataset of their own and join them with `flowtrain data "
            "merge`, which goes by names"
        )


def _first_difference(names: tuple[str, ...] | None, first: tuple[str, ...] | None) -> str:
    """Where the classes of a file differ from those of the first file, whose name ends the line."""
    if first is None:
        return "names its classes, unlike"
    if names is None:
        return "does not name its classes, unlike"
    quoted = [[json.dumps(name) for name in table] for table in (names, first)]
    rows = enumerate(zip_longest(*quoted, fillvalue="none"))
    number, (one, other) = next((number, pair) for number, pair in rows if pair[0] != pair[1])
    return f"class {number} is {one}, and {other} in"


def of_split(names: Sequence[str], split: str, where: str) -> list[str]:
    """The split's files, by names like train-00000-of-00005.parquet; all, if none is so named.

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
    _check_folder([name for name, _ in chosen], split, where)
    _check_numbers([match for _, match in chosen], split, where)
    return [name for name, _ in chosen]


def _check_folder(names: Sequence[str], split: str, where: str) -> None:
    """Refuse files of one split that lie in several folders."""
    folders = sorted({str(PurePosixPath(name).parent) for name in names})
    if len(folders) > 1:
        shown = _first_few(folders, " and ")
        raise UserError(
            f"{where}: files of {split!r} are in {len(folders)} folders ({shown}), as those of "
            "several configurations; "
            f"name the one that is meant, like {where}/{folders[-1]}, or take the others out"
        )


def _check_numbers(matches: Sequence[re.Match[str]], split: str, where: str) -> None:
    """Refuse files of one split that are not numbered from 0 to their count, each of them there."""
    counts = {int(match["count"]) for match in matches}
    if len(counts) > 1:
        raise UserError(
            f"{where}: files of {split!r} cut into {' and '.join(map(str, sorted(counts)))}; keep "
            "one kind"
        )
    missing = sorted(set(range(*counts)) - {int(match["number"]) for match in matches})
    if missing:
        shown = _first_few([f"{number:05d}" for number in missing], ", ")
        raise UserError(
            f"{where}: of {split!r} the files {shown} are missing ({len(missing)} in all); fetch "
            "them"
        )


def _first_few(words: Sequence[str], separator: str) -> str:
    more = ", ..." if len(words) > _SHOWN else ""
    return separator.join(words[:_SHOWN]) + more


def _choose(
    name: str, candidates: Sequence[str], path: str, what: str, columns: Sequence[str]
) -> str | None:
    """The candidate of that name, or the only one; None without any."""
    if name in candidates:
        return name
    if len(candidates) < 2:
        return next(iter(candidates), None)
    raise UserError(
        f"{path}: more than one {what}: {', '.join(candidates)}; name the right one {name}"
    )


def _features(metadata: dict[bytes, bytes] | None) -> dict[str, tuple[str, ...]]:
    """Names of the classes, by column, as Hugging Face's `datasets` leaves them in the schema."""
    try:
        described = json.loads((metadata or {}).get(b"huggingface", b"{}"))
        features = described.get("info", {}).get("features", {})
        labels = {
            name: feature.get("names")
            for name, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
        }
        return {name: tuple(map(str, names)) for name, names in labels.items() if names}
    except (ValueError, AttributeError, TypeError):
        return {}


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
