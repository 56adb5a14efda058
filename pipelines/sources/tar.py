"""`tar:FILE[,FILE]`: images in tars, and in tars within them, read where they lie.

`ILSVRC2012_img_train.tar` is such a tar of tars, one a class: `n01440764.tar` in it is the class
n01440764.
"""

import tarfile
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

from pipelines.sources.base import Item
from pipelines.sources.ilsvrc import Devkit, is_devkit, read_devkit
from pipelines.sources.listed import ByFolder, Found, Labelling, ListedSource
from pipelines.sources.names import LEADS_OUT, is_hidden, is_image, leads_out, plain
from pipelines.sources.ranges import RangeFile
from pipelines.sources.tarwalk import walk
from schemas.errors import UserError, reason_of
from schemas.storage import paths

INNER = ".tar"
REMOTE_READERS = 32  # inner tars that are listed at the same time on an object store
_KINDS = {
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.LNKTYPE: "a link to another member",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a pipe",
}


class _Inner(NamedTuple):
    """A tar within a tar: its path without the extension, and where its bytes are."""

    name: str
    start: int
    stop: int


class TarSource(ListedSource):
    """Images in tars, listed by headers only, then read by one ranged read each.

    Folders and inner tars are classes. A devkit of ILSVRC2012 (`.tar.gz`) among the files gives the
    labels of its validation images, and the classes that a training tar must have.

    Args:
        names: local paths or URLs, separated by commas.
        split: what the user calls this part of the data.

    Raises:
        UserError: no file named, or one that is not there.
    """

    def __init__(self, names: str, split: str):
        archives = [paths.absolute(name) for name in names.split(",") if name]
        self._devkit = next((path for path in archives if is_devkit(path)), None)
        self._tars = [path for path in archives if path != self._devkit]
        if not self._tars:
            raise UserError(f"tar:{names}: no tar given; say tar:FILE or tar:FILE,FILE")
        for path in archives:
            if not paths.is_url(path) and not paths.exists(path):
                raise UserError(f"{path}: no such file")
        super().__init__(f"tar:{','.join(archives)}", split, unwrap=True)

    def find(self) -> Iterator[Found]:
        for number, path in enumerate(self._tars):
            try:
                yield from _members(path, number)
            except OSError as error:
                raise UserError(f"{path}: cannot be read ({reason_of(error)})") from error

    def read_bytes(self, item: Item) -> bytes:
        number, offset = map(int, item.location.split(":"))
        data = paths.read(self._tars[number], offset, item.size)
        if len(data) < item.size:
            raise OSError(f"{self._tars[number]} is shorter than it was when it was listed")
        return data

    def label_by(self, folders: frozenset[str]) -> Labelling:
        if self._devkit is None:
            return ByFolder(folders)
        devkit: Devkit = read_devkit(self._devkit)
        return devkit.training(folders, self.descriptor) if folders else devkit.validation()


def _members(path: str, number: int) -> Iterator[Found]:
    """Images and folders of a tar and of the tars within it."""
    modified = paths.facts(path).modified
    pool = ThreadPoolExecutor(REMOTE_READERS if paths.is_url(path) else 1)
    waiting = deque[Future[list[Found]]]()
    try:
        with RangeFile(path) as file:
            outer = _Inner("", 0, file.size)
            for member in walk(file, path):
                if _is_tar(member):
                    start = member.offset_data
                    one = _Inner(plain(member.name.removesuffix(INNER)), start, start + member.size)
                    waiting.append(pool.submit(_inner_members, path, one, number, modified))
                    if len(waiting) > 2 * REMOTE_READERS:
                        yield from waiting.popleft().result()
                elif (found := _entry_of(member, outer, number, modified)) is not None:
                    yield found
        while waiting:
            yield from waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _inner_members(path: str, inside: _Inner, number: int, modified: int) -> list[Found]:
    name = f"{inside.name}{INNER} in {path}"
    listed = [] if leads_out(inside.name) else [Found(f"{inside.name}/")]
    with RangeFile(path, inside.start, inside.stop) as file:
        for member in walk(file, name):
            if _is_tar(member):
                raise UserError(
                    f"{name}: holds a further tar, {member.name}; tars may be nested once"
                )
            if (found := _entry_of(member, inside, number, modified)) is not None:
                listed.append(found)
    return listed


def _is_tar(member: tarfile.TarInfo) -> bool:
    return member.isreg() and member.name.endswith(INNER) and not is_hidden(member.name)


def _entry_of(member: tarfile.TarInfo, inside: _Inner, number: int, modified: int) -> Found | None:
    """What a member is to a source; None for what is neither a folder nor an image."""
    prefix = f"{inside.name}/" if inside.name else ""
    name = plain(member.name)
    if is_hidden(name) or name in ("", "/"):
        return None
    if member.isdir():
        return None if leads_out(name) else Found(f"{prefix}{name.rstrip('/')}/")
    if not is_image(name):
        return None
    problem = LEADS_OUT if leads_out(prefix + name) else ""
    if not member.isreg():
        problem = f"{_KINDS.get(member.type, 'a special member')}, not a file"
    elif member.issparse():
        problem = "stored with holes (a sparse file), which cannot be read where it lies"
    return Found(
        f"{prefix}{name}",
        member.size,
        f"{number}:{inside.start + member.offset_data}",
        modified,
        problem,
    )
