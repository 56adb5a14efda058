"""How a source is read, beside its place: at the end of its name, so that whoever has the name
reads it in the same way: `parquet:/data/cifar100#image=img&label=fine_label`.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass, fields, replace
from typing import Any, Literal
from urllib.parse import parse_qsl, urlencode

import numpy as np
from numpy.typing import NDArray

from pipelines.images import ImageError, decode_image
from schemas.errors import UserError

_ASKED_BY = {
    "classes": "--classes",
    "image": "--image-column",
    "label": "--label-column",
    "exif": "--exif",
    "min_side": "--min-side",
}
_END = re.compile(rf"#((?:{'|'.join(_ASKED_BY)})=[^#/]*)$")
OF_FILES = frozenset({"exif", "min_side"})  # for every source of image files


@dataclass(frozen=True)
class SourceOptions:
    """What a person may say of a source.

    Attributes:
        classes: "folders" as the source has them, whatever it calls them; "none": one class.
        image: name of the column of images; "" for the only possible one.
        label: name of the column, or of the key of a JSON file, that holds the class; "" for the
            usual one.
        exif: "apply": images are turned as their EXIF says; "ignore": as they are stored.
        min_side: images with a shorter side of fewer pixels are rejected.
    """

    classes: Literal["folders", "none"] = "folders"
    image: str = ""
    label: str = ""
    exif: Literal["apply", "ignore"] = "apply"
    min_side: int = 0

    def decode(self, data: bytes) -> NDArray[np.uint8]:
        """Pixels (H, W, 3) of an image file.

        Raises:
            ImageError: as `decode_image`, or it is too small.
        """
        pixels = decode_image(data, turn=self.exif == "apply")
        height, width, _ = pixels.shape
        if min(height, width) < self.min_side:
            raise ImageError(f"{width}x{height} pixels, below --min-side {self.min_side}")
        return pixels

    @property
    def suffix(self) -> str:
        """The end of the source's name: "" where nothing was said."""
        said = {name: getattr(self, name) for name in self.said()}
        return f"#{urlencode(said)}" if said else ""

    def check(self, known: Collection[str], where: str) -> None:
        """Refuse an option that means nothing for a source.

        Raises:
            UserError: one that is not among the `known` names.
        """
        for name in self.said():
            if name not in known:
                raise UserError(f"{where}: {_ASKED_BY[name]} says nothing about such a source")

    def said(self) -> list[str]:
        """Names of the options that are not as they are by themselves."""
        return [one.name for one in fields(self) if getattr(self, one.name) != one.default]


def split_options(name: str) -> tuple[str, SourceOptions]:
    """A source's name without its end, and what the end says.

    Raises:
        UserError: an option or its value is unknown.
    """
    end = _END.search(name)
    if end is None:
        return name, SourceOptions()
    said: dict[str, Any] = dict(parse_qsl(end[1], keep_blank_values=True))
    side = said.get("min_side", "0")
    known = (
        said.keys() <= _ASKED_BY.keys(),
        said.get("classes", "none") in ("folders", "none"),
        said.get("exif", "apply") in ("apply", "ignore"),
        side.isascii() and side.isdigit() and len(side) < 10,
    )
    if not all(known):
        raise UserError(
            f"{name}: #{end[1]} is not understood; known are classes=none, image=COLUMN, "
            "label=COLUMN, exif=ignore and min_side=PIXELS"
        )
    return name[: end.start()], SourceOptions(**{**said, "min_side": int(side)})


def with_options(name: str, typed: SourceOptions) -> str:
    """A source's name with what a command's options say of it; they override the name's own end.

    Raises:
        UserError: as `split_options`.
    """
    place, said = split_options(name)
    changes = {key: getattr(typed, key) for key in typed.said()}
    return place + replace(said, **changes).suffix
