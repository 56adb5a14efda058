"""Which columns hold images and labels, by their names, their types and what `datasets` says of
them in the schema.
"""

import json
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any, NamedTuple

from pipelines.sources.options import SourceOptions
from schemas.errors import UserError
from schemas.json_text import parse_json

# Names that need not be said: those of `datasets`, and of WebDataset shards that were converted.
_IMAGE_NAMES = ("image", "img", "jpg", "jpeg", "png", "webp")
_LABEL_NAMES = ("cls", "class")
_IMAGES = "column of images (a struct with bytes, or bytes)"
_LABELS = "labels must be whole numbers or texts"


class Columns(NamedTuple):
    """The columns of images and labels. `names` are the classes', None where it has none; `text`
    tells labels that are texts.
    """

    path: str
    image: str
    label: str | None
    names: tuple[str, ...] | None
    text: bool = False


def find_columns(path: str, schema: Any, options: SourceOptions) -> Columns:
    """The columns that are said, or that are named image and label, or the only possible ones.

    Args:
        path: the file, for what is told of it.
        schema: its Arrow schema.
        options: the columns that a person chose, and whether there shall be classes.

    Raises:
        UserError: no such column, several, or labels that are neither whole numbers nor texts.
    """
    image = _image_column(path, schema, options.image)
    label = None
    if options.classes != "none":
        label = _label_column(path, schema, options.label)
    elif options.label:
        raise UserError(f"{path}: --label-column and --classes none say two things; leave one out")
    if label is None:
        return Columns(path, image, None, None)
    kind = schema.field(label).type
    if not _is_label(kind):
        raise UserError(
            f"{path}: the column {label} holds {kind}; {_LABELS}; choose another with "
            "--label-column, or --classes none"
        )
    text = _is_text(kind)
    return Columns(path, image, label, None if text else _classes(schema).get(label), text)


def check_same(path: str, schema: Any, columns: Columns, options: SourceOptions) -> None:
    """Refuse a file whose rows do not mean the same as those of the file that `columns` are of.

    Raises:
        UserError: it lacks one of the columns, or has other classes.
    """
    for name in filter(None, (columns.image, columns.label)):
        if name not in schema.names:
            raise UserError(
                f"{path}: has no column {name}, as the first file has; leave out files of another "
                "kind"
            )
    chosen = SourceOptions(options.classes, columns.image, columns.label or "")
    found = find_columns(path, schema, chosen)
    if found.label != columns.label:
        raise UserError(
            f"{path}: has a column {found.label}, and {columns.path} has none; leave out files of "
            "another kind"
        )
    if found.text != columns.text:
        one, other = ("texts", "numbers") if found.text else ("numbers", "texts")
        raise UserError(
            f"{path}: the column {columns.label} holds {one}, and {other} in {columns.path}; leave "
            "out files of another kind"
        )
    if found.names != columns.names:
        raise UserError(
            f"{path}: {_first_difference(found.names, columns.names)} {columns.path}; preprocess "
            "files of other classes into a dataset of their own and join them with `flowtrain data "
            "merge`, which goes by names"
        )


def _image_column(path: str, schema: Any, said: str) -> str:
    if said:
        return _said(path, schema, said, _holds_images, "--image-column", "bytes of images")
    images = [field.name for field in schema if _holds_images(field.type)]
    if not images:
        raise UserError(f"{path}: no {_IMAGES}; it has {', '.join(schema.names)}")
    marked = [name for name, one in _features(schema).items() if one.get("_type") == "Image"]
    for among in (("image",), images if len(images) == 1 else (), _IMAGE_NAMES, marked):
        fitting = [name for name in among if name in images]
        if len(fitting) == 1:
            return fitting[0]
    raise UserError(
        f"{path}: more than one {_IMAGES}: {', '.join(images)}; choose one with --image-column"
    )


def _label_column(path: str, schema: Any, said: str) -> str | None:
    if said:
        return _said(path, schema, said, _is_label, "--label-column", "whole numbers or texts")
    if "label" in schema.names:
        return "label"
    classed = [name for name in _classes(schema) if name in schema.names]
    if len(classed) > 1:
        raise UserError(
            f"{path}: more than one column of labels: {', '.join(classed)}; choose one with "
            "--label-column"
        )
    named = [
        name for name in _LABEL_NAMES if name in schema.names and _is_label(schema.field(name).type)
    ]
    return next(iter([*classed, *named]), None)


def _said(path: str, schema: Any, name: str, fits: Any, option: str, what: str) -> str:
    """A column that a person named."""
    if name not in schema.names:
        raise UserError(f"{path}: no column {name} ({option}); it has {', '.join(schema.names)}")
    kind = schema.field(name).type
    if not fits(kind):
        raise UserError(f"{path}: the column {name} holds {kind}, not {what}")
    return name


def _holds_images(kind: Any) -> bool:
    """Whether a column of this Arrow type may be one of images: bytes, or a struct with bytes."""
    import pyarrow.types as kinds

    if kinds.is_struct(kind):
        return kind.get_field_index("bytes") >= 0
    return kinds.is_binary(kind) or kinds.is_large_binary(kind)


def _is_label(kind: Any) -> bool:
    import pyarrow.types as kinds

    return kinds.is_integer(kind) or _is_text(kind)


def _is_text(kind: Any) -> bool:
    import pyarrow.types as kinds

    if kinds.is_dictionary(kind):  # as of a category of pandas
        kind = kind.value_type
    return kinds.is_string(kind) or kinds.is_large_string(kind)


def _classes(schema: Any) -> dict[str, tuple[str, ...]]:
    """Names of the classes, by column."""
    names = {
        name: feature.get("names")
        for name, feature in _features(schema).items()
        if feature.get("_type") == "ClassLabel"
    }
    return {name: tuple(map(str, one)) for name, one in names.items() if one}


def _features(schema: Any) -> dict[str, dict[str, Any]]:
    """The columns as Hugging Face's `datasets` describes them in the schema."""
    try:
        described = parse_json((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = described.get("info", {}).get("features", {})
        return {name: feature for name, feature in features.items() if isinstance(feature, dict)}
    except (ValueError, AttributeError):  # metadata of another program's
        return {}


def _first_difference(names: Sequence[str] | None, first: Sequence[str] | None) -> str:
    """Where the classes of a file differ from those of the first file, whose name ends the line."""
    if first is None:
        return "names its classes, unlike"
    if names is None:
        return "does not name its classes, unlike"
    quoted = [[json.dumps(name) for name in table] for table in (names, first)]
    rows = enumerate(zip_longest(*quoted, fillvalue="none"))
    number, (one, other) = next((number, pair) for number, pair in rows if pair[0] != pair[1])
    return f"class {number} is {one}, and {other} in"
