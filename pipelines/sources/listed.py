"""What the sources that are trees of named files have in common: folders, tars and zips.

Sub-folders are classes; a tree without any is one class. The listing is kept in a temporary
database, so that memory does not grow with the number of files, and what has to be known of all of
them (the classes) is known before the first item is given.
"""

import sqlite3
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from pipelines.images import SUFFIXES, ImageError, decode_image
from pipelines.sources.base import Item, Picture, Source
from pipelines.sources.names import readable
from pipelines.sources.refused import check_usable, refused
from schemas.errors import UserError

FLAT_CLASS = "all"
EMPTY_CLASS = "a class folder with no image in it"
# of an image file; as much as the largest image allowed takes in 16 bits a channel
MAX_BYTES = 2**29

_TABLE = "CREATE TABLE found (name BLOB, size INT, location BLOB, modified INT, problem TEXT)"


class Found(NamedTuple):
    """A file of a tree: its name (with `/`; a folder's ends with one), and what an item says of it.

    `problem` is why it cannot be used, when its name or kind alone tells.
    """

    name: str
    size: int = 0
    location: str = ""
    modified: int = 0
    problem: str = ""


class Labelling(Protocol):
    """The classes, and which of them a file belongs to."""

    @property
    def classes(self) -> tuple[str, ...]: ...

    def label(self, name: str) -> int:
        """Class of the image of that name.

        Raises:
            ImageError: it has none.
        """
        ...


class ByFolder:
    """The first folder of a name is its class.

    Args:
        folders: all of them, or none in a flat tree, which is one class.
    """

    def __init__(self, folders: Iterable[str]):
        self.classes = tuple(sorted(folders)) or (FLAT_CLASS,)
        self._labels = {name: label for label, name in enumerate(self.classes)}

    def label(self, name: str) -> int:
        top, separator, _ = name.partition("/")
        return self._labels[top] if separator else 0


@dataclass(frozen=True)
class _Listing:
    database: sqlite3.Connection
    wrapper: str  # the folders around everything, as a prefix of all names
    labelling: Labelling
    empty: tuple[str, ...]  # folders without an image

    def found(self) -> Iterator[Found]:
        rows = self.database.execute("SELECT name, size, location, modified, problem FROM found")
        for name, size, location, modified, problem in rows:
            yield Found(_text(name), size, _text(location), modified, problem)


class ListedSource(Source):
    """A tree of image files.

    Args:
        descriptor: the name that opens it again, from any directory.
        split: what the user calls this part of the data.
        unwrap: whether folders around everything (as archives often have) are taken off the names.
            Where that would leave no class folder, or images beside the class folders, they stay.
    """

    def __init__(self, descriptor: str, split: str, unwrap: bool):
        self.descriptor = descriptor
        self.split = split
        self._unwrap = unwrap
        self._cached: _Listing | None = None

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_cached": None}  # a list of a million items is not for the wire

    @abstractmethod
    def find(self) -> Iterator[Found]:
        """All images and all folders of the tree, in any order, hidden ones left out.

        Raises:
            UserError: the source cannot be listed.
        """

    @abstractmethod
    def read_bytes(self, item: Item) -> bytes:
        """Bytes of an image file.

        Raises:
            ImageError: the file itself is bad.
            OSError: its bytes cannot be had.
        """

    def label_by(self, folders: frozenset[str]) -> Labelling:
        """How images get their classes; `folders` are the first folders of all names, none in a
        flat tree.
        """
        return ByFolder(folders)

    @property
    def classes(self) -> tuple[str, ...]:
        return self._list().labelling.classes

    def index(self) -> Iterator[Item]:
        listing = self._list()
        for found in listing.found():
            if not found.name.endswith("/"):
                yield _item(found, listing)
        for folder in listing.empty:
            yield refused(f"{folder}/", EMPTY_CLASS, label=listing.labelling.label(f"{folder}/"))

    def read(self, item: Item) -> Picture:
        check_usable(item)
        if item.size > MAX_BYTES:
            raise ImageError(f"{item.size} bytes are more than the {MAX_BYTES} allowed")
        return Picture(decode_image(self.read_bytes(item)), item.label)

    def _list(self) -> _Listing:
        if self._cached is None:
            # temporary: in memory while it is small
            database = sqlite3.connect("", check_same_thread=False)
            database.execute("PRAGMA journal_mode = OFF")
            database.execute("PRAGMA synchronous = OFF")
            database.execute(_TABLE)
            shape = _Shape()
            try:
                rows = (_row(found) for found in shape.watch(self.find()))
                database.executemany("INSERT INTO found VALUES (?, ?, ?, ?, ?)", rows)
            except sqlite3.OperationalError as error:
                raise UserError(
                    f"cannot list {self.descriptor} ({error}); make room where TMPDIR lies, or set "
                    "TMPDIR"
                ) from error
            self._cached = self._classify(database, shape)
        return self._cached

    def _classify(self, database: sqlite3.Connection, shape: "_Shape") -> _Listing:
        if not shape.images:
            kinds = ", ".join(sorted(SUFFIXES))
            raise UserError(
                f"{self.descriptor}: no image file in it; looked for {kinds} at any depth"
            )
        names = (
            _text(name) for (name,) in database.execute("SELECT name FROM found WHERE problem = ''")
        )
        wrapper = shape.wrapper() if self._unwrap else ""
        tops, others, loose = _tops(names, wrapper)
        if tops and loose:
            raise UserError(
                f"{self.descriptor}: images lie both in class folders and beside them "
                f"({readable(loose)}); "
                "move the loose ones into a folder of their own"
            )
        empty = others - tops if tops else frozenset[str]()
        labelling = self.label_by(tops | empty)
        return _Listing(database, wrapper, labelling, tuple(sorted(empty & set(labelling.classes))))


class _Shape:
    """What a pass over all names tells of the tree."""

    def __init__(self) -> None:
        self.images = 0
        self._shared: list[str] | None = None  # the folders above every image
        self._least = 0  # the fewest folders above an image

    def watch(self, found: Iterator[Found]) -> Iterator[Found]:
        """Hand on all files, and take note of them."""
        for one in found:
            if not one.name.endswith("/"):
                self.images += 1
                if not one.problem:
                    self._note(one.name.split("/")[:-1])
            yield one

    def _note(self, folders: list[str]) -> None:
        if self._shared is None:
            self._shared, self._least = folders, len(folders)
            return
        same = 0
        for one, other in zip(self._shared, folders, strict=False):
            if one != other:
                break
            same += 1
        self._shared = self._shared[:same]
        self._least = min(self._least, len(folders))

    def wrapper(self) -> str:
        """The folders around all images as a prefix, if each image lies in a further folder below
        them; else none.
        """
        shared = self._shared or []
        return "".join(f"{folder}/" for folder in shared) if self._least > len(shared) else ""


def _tops(names: Iterable[str], wrapper: str) -> tuple[frozenset[str], frozenset[str], str | None]:
    """First folders below `wrapper` that hold images, first folders of all kinds, and an image that
    lies in none.
    """
    holding, others, loose = set[str](), set[str](), None
    for name in names:
        if not name.startswith(wrapper):  # an empty folder elsewhere
            continue
        top, inside, _ = name.removeprefix(wrapper).partition("/")
        if name.endswith("/"):
            others.add(top)
        elif inside:
            holding.add(top)
        elif loose is None or name < loose:
            loose = name
    others.discard("")
    return frozenset(map(readable, holding)), frozenset(map(readable, others)), loose


def _item(found: Found, listing: _Listing) -> Item:
    key = readable(found.name)
    if found.problem:
        return refused(key, found.problem, found.size, found.modified)
    key = key.removeprefix(readable(listing.wrapper))
    try:
        return Item(key, listing.labelling.label(key), found.size, found.location, found.modified)
    except ImageError as error:
        return refused(key, error.reason, found.size, found.modified)


def _row(found: Found) -> tuple[bytes, int, bytes, int, str]:
    name = found.name.encode("utf-8", "surrogateescape")
    location = found.location.encode("utf-8", "surrogateescape")
    return name, found.size, location, found.modified, found.problem


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")
