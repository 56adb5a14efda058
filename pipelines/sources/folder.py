"""A folder of image files. Sub-folders are classes; a folder without any is one class."""

import os
from collections.abc import Iterator
from pathlib import Path

from pipelines.images import SUFFIXES, decode_image
from pipelines.sources.base import Item, Picture, Source
from schemas.errors import UserError

FLAT_CLASS = "all"


class FolderSource(Source):
    """Image files by extension, at any depth below their class folder. Hidden files and folders are left out.

    Args:
        path: the folder.
        split: what the user calls this part of the data.

    Raises:
        UserError: no such folder.
    """

    def __init__(self, path: str, split: str):
        folder = Path(path).expanduser().absolute()
        if not folder.is_dir():
            what = "is a file, not a folder of images" if folder.exists() else "no such folder"
            raise UserError(f"{path}: {what}; give a folder of images (sub-folders are classes)")
        self.descriptor = str(folder)
        self.split = split
        self._listing: tuple[tuple[str, ...], list[Item]] | None = None

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_listing": None}  # a list of a million items is not for the wire

    @property
    def classes(self) -> tuple[str, ...]:
        return self._list()[0]

    def index(self) -> Iterator[Item]:
        return iter(self._list()[1])

    def read(self, item: Item) -> Picture:
        return Picture(decode_image(Path(self.descriptor, item.location).read_bytes()), item.label)

    def _list(self) -> tuple[tuple[str, ...], list[Item]]:
        if self._listing is None:
            self._listing = self._walk()
        return self._listing

    def _walk(self) -> tuple[tuple[str, ...], list[Item]]:
        try:
            found = sorted(_image_files(self.descriptor))
        except OSError as error:
            raise UserError(f"{error.filename}: cannot be listed ({error.strerror})") from error
        if not found:
            raise UserError(
                f"{self.descriptor}: no image file in it; looked for {', '.join(sorted(SUFFIXES))} at any depth"
            )
        tops = [location.split(os.sep, 1)[0] if os.sep in location else None for location, *_ in found]
        folders = sorted({_readable(top) for top in tops if top is not None})
        if folders and None in tops:
            loose = found[tops.index(None)][0]
            raise UserError(
                f"{self.descriptor}: images lie both in class folders and beside them ({_readable(loose)}); "
                "move the loose ones into a folder of their own"
            )
        classes = tuple(folders) or (FLAT_CLASS,)
        labels = {name: label for label, name in enumerate(classes)}
        items = [
            Item(
                key=_readable(location).replace(os.sep, "/"),
                label=0 if top is None else labels[_readable(top)],
                size=size,
                location=location,
                modified=modified,
            )
            for (location, size, modified), top in zip(found, tops, strict=True)
        ]
        return classes, items


def _image_files(root: str) -> Iterator[tuple[str, int, int]]:
    """(path relative to `root`, bytes, time of change) of every image file.

    Symbolic links are followed, but never in a circle.
    """
    pending = [(Path(root), frozenset[tuple[int, int]]())]
    while pending:
        folder, above = pending.pop()
        status = folder.stat()
        identity = (status.st_dev, status.st_ino)
        if identity in above:
            continue
        for entry in os.scandir(folder):
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                pending.append((Path(entry.path), above | {identity}))
            elif Path(entry.name).suffix.lower() in SUFFIXES and entry.is_file():
                found = entry.stat()
                yield os.path.relpath(entry.path, root), found.st_size, found.st_mtime_ns


def _readable(name: str) -> str:
    """A file name as valid UTF-8 on one line; bytes that are not, and line ends, are written as escapes."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return text.replace("\n", "\\n").replace("\r", "\\r")
