"""Sources of images by name: `open_source` turns what a person typed into a `Source`."""

import re
from collections.abc import Callable

from pipelines.sources.base import UNLABELLED, Item, Picture, Source
from pipelines.sources.digits import DigitsSource
from pipelines.sources.folder import FolderSource
from schemas.errors import UserError

__all__ = ["UNLABELLED", "Item", "Picture", "Source", "open_source"]

EMBEDDED: dict[str, Callable[[str], Source]] = {"digits": DigitsSource}


def open_source(descriptor: str, split: str) -> Source:
    """Open a folder of images or `embedded:NAME`.

    Raises:
        UserError: unknown kind or name, or nothing there.
    """
    scheme, separator, rest = descriptor.partition(":")
    # One letter before a colon is a drive; a name with a slash before the colon is a path.
    if not separator or not re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]+", scheme):
        return FolderSource(descriptor, split)
    if scheme not in SCHEMES:
        raise UserError(
            f"{descriptor}: unknown kind of source {scheme + ':'!r}; known are a folder of images and "
            f"{', '.join(f'{name}:NAME' for name in SCHEMES)}"
        )
    return SCHEMES[scheme](rest, split)


def _open_embedded(name: str, split: str) -> Source:
    if name not in EMBEDDED:
        raise UserError(f"embedded:{name}: no such embedded source; known: {', '.join(EMBEDDED)}")
    return EMBEDDED[name](split)


SCHEMES: dict[str, Callable[[str, str], Source]] = {"embedded": _open_embedded}
