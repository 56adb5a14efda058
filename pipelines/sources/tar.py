"""`tar:FILE[,FILE]`: images in tars, and in tars within them, read where they lie.

`ILSVRC2012_img_train.tar` is such a tar of tars, one a class: `n01440764.tar` in it is the class
n01440764.
"""

import logging
import tarfile
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

from pipelines.sources.base import Item
from pipelines.sources.ilsvrc import Devkit, is_devkit, read_devkit
from pipelines.sources.inside import below, place_of
from pipelines.sources.labels import ByFolder, Labelling
from pipelines.sources.listed import Found, ListedSource
from pipelines.sources.names import LEADS_OUT, OTHER, is_hidden, kind_of, leads_out, plain
from pipelines.sources.options import SourceOptions
from pipelines.sources.ranges import RangeFile
from pipelines.sources.tarwalk import problem_of, walk
from schemas.errors import UserError, reason_of
from schemas.storage import paths
from schemas.storage.url import is_url

INNER = ".tar"
REMOTE_READERS = 32  # inner tars that are listed at the same time on an object store
_log = logging.getLogger(__name__)


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
        names: local paths or URLs, separated by commas, each perhaps with `!FOLDER`.
        split: what the user calls this part of the data.
        options: whether folders are classes.

    Raises:
        UserError: no file named, or one that is not there.
    """

    def __init__(self, names: str, split: str, options: SourceOptions):
        places = [place_of(name) for name in names.split(",") if name]
        self._devkit = next((path for path, _ in places if is_devkit(path)), None)
        self._tars = [place for place in places if not is_devkit(place.path)]
        if not self._tars:
            raise UserError(f"tar:{names}: no tar given; say tar:FILE or tar:FILE,FILE")
        super().__init__(f"tar:{','.join(map(str, places))}", split, options, unwrap=True)

    def find(self) -> Iterator[Found]:
        for number, place in enumerate(self._tars):
            try:
                yield from below(_members(place.path, number), place)
            except OSError as error:
                raise UserError(f"{place.path}: cannot be read ({reason_of(error)})") from error

    def read_bytes(self, item: Item) -> bytes:
        number, offset = map(int, item.location.split(":"))
        path = self._tars[number].path
        data = paths.read(path, offset, item.size)
        if len(data) < item.size:
            raise OSError(f"{path} is shorter than it was when it was listed")
        return data

    def label_by(self, folders: frozenset[str]) -> Labelling:
        if self._devkit is None:
            return ByFolder(folders)
        devkit: Devkit = read_devkit(self._devkit)
        return devkit.training(folders, self.descriptor) if folders else devkit.validation()


def _members(path: str, number: int) -> Iterator[Found]:
    """Images and folders of a tar and of the tars within it."""
    modified = paths.facts(path).modified
    pool = ThreadPoolExecutor(REMOTE_READERS if is_url(path) else 1)
    waiting = deque[Future[list[Found]]]()
    shard = False
    try:
        with RangeFile(path) as file:
            outer = _Inner("", 0, file.size)
            for member in walk(file, path):
                shard = shard or member.name.endswith(".cls")
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
        if shard:
            _log.warning("%s: a WebDataset shard; wds:%s reads it with its labels", path, path)
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
    """What a member is to a source; None for what is neither a folder nor a file that is seen."""
    prefix = f"{inside.name}/" if inside.name else ""
    name = plain(member.name)
    if is_hidden(name) or name in ("", "/"):
        return None
    if member.isdir():
        return None if leads_out(name) else Found(f"{prefix}{name.rstrip('/')}/")
    kind = kind_of(name)
    if kind == OTHER:
        return Found(f"{prefix}{name}", kind=kind) if member.isreg() else None
    problem = problem_of(member) or (LEADS_OUT if leads_out(prefix + name) else "")
    return Found(
        f"{prefix}{name}",
        member.size,
        f"{number}:{inside.start + member.offset_data}",
        modified,
        problem,
        kind,
    )
