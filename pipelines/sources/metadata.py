"""Labels of Hugging Face's folders of images: `metadata.jsonl` and `metadata.csv`.

Such a file has a line for each image, whose `file_name` (or a column that ends so) is relative to
the folder that the file lies in. Where there are such files the folders are no classes.
https://huggingface.co/docs/datasets/image_dataset, and `folder_based_builder.py` of `datasets`.
"""

import csv
import io
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from pipelines.sources.dataset_json import IGNORE, parsed, shown
from pipelines.sources.labels import MAX_CLASSES, ByName, Labelling, numbered
from pipelines.sources.names import key_of, readable, written
from schemas.errors import UserError

LABEL = "label"
_SHOWN = 8  # columns in a message


@dataclass
class _Lines:
    """What all files say of the images of a tree."""

    base: str
    labels: dict[str, int | str | None] = field(default_factory=dict)
    columns: dict[str, None] = field(default_factory=dict)  # a set that keeps the order
    files: dict[str, None] = field(default_factory=dict)  # without folders

    @property
    def name(self) -> str:
        """What the files are called, for messages."""
        return " and ".join(self.files)


def read_metadata(
    files: Iterable[tuple[str, bytes]], base: str, column: str, where: str
) -> Labelling | None:
    """The classes that such files give: numbers from 0 to the highest label, or words, sorted.

    Args:
        files: name and content of each.
        base: what the keys of images are relative to.
        column: the column of labels that must be there; "" for `label`, if it is.
        where: the source, for messages.

    Returns:
        None where the files say nothing of classes: folders may be classes then.

    Raises:
        UserError: a file that cannot be read, labels that are neither whole numbers nor words, or
            no such column.
    """
    lines = _Lines(base)
    unlabelled = ""  # a file that names images and has no such column
    for name, data in files:
        what = f"{where}: {readable(name)}"
        if not _take(name, data, column or LABEL, lines, what):
            unlabelled = unlabelled or what
    if any(label is not None for label in lines.labels.values()):
        if not unlabelled:
            return _labelling(lines, f"{where}: {lines.name}")
    elif not column:
        return None
    known = ", ".join(map(shown, list(lines.columns)[:_SHOWN]))
    raise UserError(
        f"{unlabelled or where}: no label in a column {column or LABEL!r}; "
        + (f"columns are {known}" if known else "there is no metadata.jsonl or metadata.csv")
    )


def _take(name: str, data: bytes, column: str, lines: _Lines, what: str) -> bool:
    """Whether a file has that column, if it names images at all."""
    folder, slash, last = name.rpartition("/")
    labels: dict[str, int | str | None] = {}
    has_column, names_images = False, False
    for number, row in _rows(last, data, what):
        line = f"{what}: line {number}"
        lines.columns.update(dict.fromkeys(row))
        path = _path(row, line)
        if path is None:
            continue
        names_images = True
        has_column = has_column or column in row
        label = _label(row.get(column), line)
        key = key_of(folder + slash, path, lines.base)
        if key is not None and labels.setdefault(key, label) != label:
            raise UserError(f"{line}: {key} has two labels; {IGNORE}")
    if names_images:
        lines.files[last] = None
        _merge(_as_numbers(labels) if last.endswith(".csv") else labels, lines, what)
    return has_column or not names_images


def _rows(last: str, data: bytes, what: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Lines, from 1 on, as columns."""
    try:
        text = io.StringIO(data.decode("utf-8-sig"), newline="")
    except UnicodeDecodeError as error:
        raise UserError(f"{what}: is not in UTF-8 ({error}); {IGNORE}") from error
    if last.endswith(".csv"):
        reader = csv.DictReader(text)
        try:
            for row in reader:
                row.pop(None, None)  # what is beyond the columns  # pyright: ignore
                yield reader.line_num, row
        except csv.Error as error:
            line = reader.line_num + 1
            raise UserError(f"{what}: line {line}: no CSV ({error}); {IGNORE}") from error
        return
    for number, line in enumerate(text, 1):
        if line.strip():
            row = parsed(line, f"{what}: line {number}")
            if not isinstance(row, dict):
                raise UserError(f"{what}: line {number} is no JSON object; {IGNORE}")
            yield number, row


def _path(row: dict[str, Any], line: str) -> str | None:
    """The name of the image that a line is of; None of a line that names none."""
    columns = ["file_name"] if "file_name" in row else [one for one in row if _names_files(one)]
    if len(columns) > 1:
        names = " and ".join(map(shown, columns))
        raise UserError(f"{line}: {names} both name files, and one image is wanted; {IGNORE}")
    if not columns:
        return None
    path = row[columns[0]]
    if not isinstance(path, str) or not path:
        raise UserError(f"{line}: {shown(columns[0])} holds no name of a file; {IGNORE}")
    return path


def _names_files(column: str) -> bool:
    return column.endswith("_file_name")


def _label(value: Any, line: str) -> int | str | None:
    if value is None or value == "":
        return None
    whole = type(value) is int and value >= 0  # True is an int, too
    if not whole and not isinstance(value, str):
        kind = "a vector" if isinstance(value, list) else shown(str(value))
        raise UserError(
            f"{line}: the label is {kind}, neither a whole number from 0 on nor text; {IGNORE}"
        )
    return value


def _as_numbers(labels: dict[str, int | str | None]) -> dict[str, int | str | None]:
    """Labels of a CSV, which has nothing but text: numbers, if all of them are."""
    said = [label for label in labels.values() if label is not None]
    if not all(re.fullmatch(r"[0-9]{1,18}", str(label)) for label in said):
        return labels
    return {key: None if label is None else int(label) for key, label in labels.items()}


def _merge(labels: dict[str, int | str | None], lines: _Lines, what: str) -> None:
    for key, label in labels.items():
        if lines.labels.setdefault(key, label) != label:
            raise UserError(f"{what}: {key} has another label in another file; {IGNORE}")


def _labelling(lines: _Lines, where: str) -> Labelling:
    said = {label for label in lines.labels.values() if label is not None}
    words = sorted(label for label in said if isinstance(label, str))
    numbers = [label for label in said if isinstance(label, int)]
    if words and numbers:
        raise UserError(f"{where}: some labels are numbers and some are text; {IGNORE}")
    if len(words) > MAX_CLASSES:
        raise UserError(
            f"{where}: {len(words)} different labels are beyond the {MAX_CLASSES} classes allowed; "
            "name the column of classes with --label-column, or ignore labels with --classes none"
        )
    positions: dict[int | str | None, int | None] = {None: None}
    positions |= dict(zip(numbers, numbers, strict=True))
    positions |= dict(zip(words, range(len(words)), strict=True))
    classes = tuple(map(written, words)) if words else numbered(max(numbers), where)
    return ByName(classes, {k: positions[one] for k, one in lines.labels.items()}, lines.name)
