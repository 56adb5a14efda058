"""Labels of the archives that StyleGAN and EDM are trained on: a `dataset.json` at their root.

`{"labels": [["00000/img00000000.png", 3], ...]}`, or `"labels": null` where there are none
(`dataset_tool.py` of NVlabs/stylegan3 and NVlabs/edm2). The folders hold so many files each and
mean nothing.
"""

import json
from collections.abc import Iterable
from typing import Any

from pipelines.sources.labels import ByName, Labelling, OneClass, numbered
from pipelines.sources.names import DATASET_JSON, key_of, readable, written
from schemas.errors import UserError
from schemas.json_text import parse_json

IGNORE = "mend it, or ignore it with --classes none"


def read_dataset_json(files: Iterable[tuple[str, bytes]], base: str, where: str) -> Labelling:
    """The classes that such files give: numbers, from 0 to the highest label.

    Args:
        files: name and content of each: archives that are read as one may have one each.
        base: what the keys of images are relative to.
        where: the source, for messages.

    Raises:
        UserError: not JSON, another kind of JSON, or labels that are no whole numbers.
    """
    labels: dict[str, int | None] = {}
    remark, labelled = "", False
    for name, data in files:
        what = f"{where}: {readable(name)}"
        listed = _labels(data, what)
        if listed is None:
            remark = f"{readable(name)} has no labels, so all images are one class"
            continue
        labelled = True
        folder = name.removesuffix(DATASET_JSON)
        for entry in listed:
            _add(entry, labels, folder, base, what)
    if not labelled:
        return OneClass(remark)
    highest = max((label for label in labels.values() if label is not None), default=0)
    return ByName(numbered(highest, f"{where}: {DATASET_JSON}"), labels, DATASET_JSON)


def parsed(data: bytes | str, what: str) -> Any:
    """JSON.

    Raises:
        UserError: it is none, or nested too deeply; `what` begins the line.
    """
    try:
        return parse_json(data if isinstance(data, str) else data.decode("utf-8-sig"))
    except ValueError as error:
        raise UserError(f"{what}: cannot be read as JSON ({error}); {IGNORE}") from error


def _labels(data: bytes, what: str) -> list[Any] | None:
    content = parsed(data, what)
    listed = content.get("labels") if isinstance(content, dict) else content
    if listed is None and isinstance(content, dict):
        return None
    if not isinstance(content, dict) or not isinstance(listed, list):
        raise UserError(
            f'{what}: not {{"labels": [[NAME, NUMBER], ...]}} as StyleGAN and EDM have it; {IGNORE}'
        )
    return listed


def _add(entry: Any, labels: dict[str, int | None], folder: str, base: str, what: str) -> None:
    if not isinstance(entry, list) or len(entry) != 2 or not isinstance(entry[0], str):
        raise UserError(f"{what}: {_short(entry)} among its labels is no [NAME, NUMBER]; {IGNORE}")
    name, label = entry
    if type(label) is not int or label < 0:  # True is an int, too
        kind = "a vector" if isinstance(label, list) else _short(label)
        raise UserError(
            f"{what}: the label of {shown(name)} is {kind}, not a whole number from 0 on; {IGNORE}"
        )
    key = key_of(folder, name, base)
    if key is not None and labels.setdefault(key, label) != label:
        raise UserError(f"{what}: {key} has two labels, {labels[key]} and {label}; {IGNORE}")


def shown(name: str) -> str:
    """A name from a list, for a message: on one line, and not a long one."""
    text = written(name)
    return text if len(text) <= 100 else f"{text[:97]}..."


def _short(value: Any) -> str:
    text = json.dumps(value)  # with escapes: on one line
    return text if len(text) <= 40 else f"{text[:37]}..."
