"""A folder inside an archive: `FILE!FOLDER`, of which only what lies below is seen."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pipelines.sources.listed import Found
from pipelines.sources.names import plain, readable
from schemas.errors import UserError, reason_of
from schemas.storage import paths
from schemas.storage.url import is_url

_SHOWN = 8  # names in a message


class Place(NamedTuple):
    """An archive, by its absolute path or URL, and a folder in it; "" for all of it."""

    path: str
    folder: str

    def __str__(self) -> str:
        return f"{self.path}!{self.folder}" if self.folder else self.path


def place_of(name: str) -> Place:
    """What a name of an archive says.

    A `!` may be part of the name of a file: a folder follows it only where there is a file of the
    name before it, and none of the whole name.

    Raises:
        UserError: no such file on the local disk, or a store that cannot be asked about a `!`.
            Other objects are looked for when they are listed.
    """
    whole = paths.absolute(name)
    if is_url(whole) and "!" not in whole:
        return Place(whole, "")
    try:
        if paths.exists(whole):
            return Place(whole, "")
        end = whole.rfind("!")
        while end > 0:
            if _is_file(whole[:end]):
                return Place(whole[:end], plain(whole[end + 1 :].strip("/")))
            end = whole.rfind("!", 0, end)
    except OSError as error:
        raise UserError(f"{whole}: cannot be read ({reason_of(error)})") from error
    if is_url(whole):
        return Place(whole, "")
    raise UserError(f"{whole}: no such file{_meant(whole)}")


def _is_file(path: str) -> bool:
    return paths.exists(path) if is_url(path) else Path(path).is_file()


def _meant(path: str) -> str:
    """What to say where a folder inside a file was named with a slash."""
    for above in Path(path).parents:
        if above.is_file():
            return f"; a folder in {above} is {above}!{Path(path).relative_to(above)}"
    return ""


def below(members: Iterator[Found], place: Place) -> Iterator[Found]:
    """What lies below the folder of an archive, with names relative to it.

    Raises:
        UserError: no such folder; the line names what there is instead.
    """
    if not place.folder:
        yield from members
        return
    prefix, seen = f"{place.folder}/", False
    level = _Level(place.folder)
    for member in members:
        if member.name.startswith(prefix):
            seen = True
            if member.name != prefix:
                yield member._replace(name=member.name[len(prefix) :])
        elif not seen:
            level.note(member.name)
    if not seen:
        raise UserError(f"{place.path}: no folder {readable(place.folder)} in it; {level.told}")


class _Level:
    """What lies beside a folder that is not there, as far down as its path leads."""

    def __init__(self, folder: str):
        self._parts = folder.split("/")
        self._depth = 0
        self._names = set[str]()

    def note(self, name: str) -> None:
        folders = name.split("/")[:-1]
        depth = 0
        for part, wanted in zip(folders, self._parts, strict=False):
            if part != wanted:
                break
            depth += 1
        if depth > self._depth:
            self._depth, self._names = depth, set()
        if depth == self._depth and len(folders) > depth and len(self._names) <= 1000:
            self._names.add(folders[depth])

    @property
    def told(self) -> str:
        above = "/".join(self._parts[: self._depth])
        where = f"in {readable(above)} there" if above else "there"
        names = sorted(map(readable, self._names))
        more = ", ..." if len(names) > _SHOWN else ""
        if not names:
            return f"{where} are no folders"
        return f"{where} {'is' if len(names) == 1 else 'are'} {', '.join(names[:_SHOWN])}{more}"
