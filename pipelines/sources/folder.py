"""Folders of image files, local or on an object store: sub-folders are classes."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

from pipelines.images import ImageError
from pipelines.sources.base import Item
from pipelines.sources.listed import Found, ListedSource
from pipelines.sources.names import OTHER, is_hidden, kind_of
from pipelines.sources.options import SourceOptions
from schemas.errors import UserError, reason_of
from schemas.storage import paths
from schemas.storage.url import is_url


class FolderSource(ListedSource):
    """Image files by extension, at any depth below their class folder. Hidden files and folders are
    left out.

    Args:
        path: the folder, or `gs://BUCKET/FOLDER`, `s3://BUCKET/FOLDER`.
        split: what the user calls this part of the data.
        options: whether folders are classes.

    Raises:
        UserError: no such folder on the local disk. An object store is asked when it is listed.
    """

    def __init__(self, path: str, split: str, options: SourceOptions):
        root = paths.absolute(path)
        if not is_url(root) and not Path(root).is_dir():
            what = "is a file, not a folder of images" if Path(root).exists() else "no such folder"
            raise UserError(f"{path}: {what}; give a folder of images (sub-folders are classes)")
        self._root = root
        super().__init__(root, split, options, unwrap=False)

    def find(self) -> Iterator[Found]:
        try:
            yield from (_objects(self._root) if is_url(self._root) else _files(self._root))
        except OSError as error:
            where = error.filename or self._root
            raise UserError(f"{where}: cannot be listed ({reason_of(error)})") from error

    def read_bytes(self, item: Item) -> bytes:
        path = paths.join(self._root, item.location)
        try:
            return paths.read(path)
        except PermissionError as error:
            if is_url(path):  # of the whole store, most likely
                raise
            raise ImageError("no permission to read it", type(error).__name__) from error


def _objects(root: str) -> Iterator[Found]:
    for name, size, modified in paths.entries(root):
        if not is_hidden(name):
            yield Found(name, size, name, modified, kind=kind_of(name))


def _files(root: str) -> Iterator[Found]:
    """Images and folders below `root`. Symbolic links are followed, but never in a circle."""
    pending = [(root, frozenset[tuple[int, int]]())]
    while pending:
        folder, above = pending.pop()
        status = Path(folder).stat()
        identity = (status.st_dev, status.st_ino)
        if identity in above:
            continue
        if folder != root:
            yield Found(f"{_name(folder, root)}/")
        with os.scandir(folder) as entries:
            for entry in entries:
                if is_hidden(entry.name):
                    continue
                problem = _problem(entry)
                if not problem and entry.is_dir():
                    pending.append((entry.path, above | {identity}))
                    continue
                kind = kind_of(entry.name)
                if kind == OTHER:  # which takes no look at the file
                    yield Found(entry.name, kind=kind)
                else:
                    facts = entry.stat(follow_symlinks=not problem)
                    location = os.path.relpath(entry.path, root)
                    name, changed = _name(entry.path, root), facts.st_mtime_ns
                    yield Found(name, facts.st_size, location, changed, problem, kind)


def _problem(entry: os.DirEntry[str]) -> str:
    """Why an entry is neither a folder nor a file."""
    try:
        if entry.is_dir() or entry.is_file():
            return ""
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        return "a symbolic link that leads back to itself"
    return (
        "a symbolic link to nothing"
        if entry.is_symlink()
        else "a device, pipe or socket, not a file"
    )


def _name(path: str, root: str) -> str:
    return os.path.relpath(path, root).replace(os.sep, "/")
