"""What the sources that are trees of named files have in common: folders, tars and zips.

Sub-folders are classes; a tree without any is one class. The listing is kept in a temporary
database, so that memory does not grow with the number of files, and what has to be known of all of
them (the classes) is known before the first item is given.
"""

import sqlite3
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from pipelines.images import SUFFIXES, ImageError
from pipelines.sources.base import Item, Picture, Source
from pipelines.sources.dataset_json import read_dataset_json
from pipelines.sources.labels import FLAT_CLASS as FLAT_CLASS  # sources of tables have it too
from pipelines.sources.labels import ByFolder, Labelling, OneClass
from pipelines.sources.left_out import LeftOut
from pipelines.sources.metadata import read_metadata
from pipelines.sources.names import DATASET_JSON, IMAGE, LIST, readable
from pipelines.sources.options import SourceOptions
from pipelines.sources.refused import check_usable, refused
from pipelines.sources.splits import are_splits, folder_of
from schemas.errors import UserError, reason_of

MOST_NUMBERED = 1_000_000  # classes that have numbers in the place of names, which are made here
EMPTY_CLASS = "a class folder with no image in it"
# of an image file; as much as the largest image allowed takes in 16 bits a channel
MAX_BYTES = 2**29
MAX_LISTS = 2**27  # of files that list labels, all of them; ImageNet's dataset.json has 60 MB

_TABLE = "CREATE TABLE found (name BLOB, size INT, location BLOB, modified INT, problem TEXT)"


class Found(NamedTuple):
    """A file of a tree: its name (with `/`; a folder's ends with one), and what an item says of it.

    `problem` is why it cannot be used, when its name or kind alone tells. `kind` is what it is by
    its name (`names.kind_of`); of what is neither an image nor a list, the name is enough.
    """

    name: str
    size: int = 0
    location: str = ""
    modified: int = 0
    problem: str = ""
    kind: str = IMAGE


@dataclass(frozen=True)
class _Listing:
    database: sqlite3.Connection
    tree: "_Tree"
    labelling: Labelling
    empty: tuple[str, ...]  # folders without an image
    left_out: str  # a remark

    def found(self) -> Iterator[Found]:
        rows = self.database.execute("SELECT name, size, location, modified, problem FROM found")
        for name, size, location, modified, problem in rows:
            yield Found(_text(name), size, _text(location), modified, problem)


class _Tops(NamedTuple):
    """First folders that hold images, first folders of all kinds, an image that lies in none."""

    holding: frozenset[str]
    others: frozenset[str]
    loose: str | None


class _Tree(NamedTuple):
    """The part of all names that is the source: below `base`, which keys have no more, and below
    none of `elsewhere`, the folders of other splits.
    """

    base: str
    elsewhere: tuple[str, ...]
    tops: _Tops


class ListedSource(Source):
    """A tree of image files.

    Args:
        place: the name that opens it again, from any directory, but for its options.
        split: what the user calls this part of the data.
        options: whether folders are classes.
        unwrap: whether folders around everything (as archives often have) are taken off the names.
            Where that would leave no class folder, or images beside the class folders, they stay.
    """

    def __init__(self, place: str, split: str, options: SourceOptions, unwrap: bool):
        self.descriptor = place + options.suffix
        self.split = split
        self._options = options
        self._unwrap = unwrap
        self._cached: _Listing | None = None

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_cached": None}  # a list of a million items is not for the wire

    @abstractmethod
    def find(self) -> Iterator[Found]:
        """All files and all folders of the tree, in any order, hidden ones left out.

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

    def remarks(self) -> tuple[str, ...]:
        listing = self._list()
        return tuple(filter(None, (listing.labelling.remark, listing.left_out)))

    def index(self) -> Iterator[Item]:
        listing = self._list()
        for found in listing.found():
            if not found.name.endswith("/") and not found.name.startswith(listing.tree.elsewhere):
                yield _item(found, listing)
        for folder in listing.empty:
            yield refused(f"{folder}/", EMPTY_CLASS, label=listing.labelling.label(f"{folder}/"))

    def read(self, item: Item) -> Picture:
        check_usable(item)
        _check_size(item)
        return Picture(self._options.decode(self.read_bytes(item)), item.label)

    def content(self, item: Item) -> tuple[int, bytes]:
        try:
            check_usable(item)
            _check_size(item)
            return item.label, self.read_bytes(item)
        except ImageError as error:
            return item.label, error.reason.encode()

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
        tree = self._tree(database, shape)
        listed = self._listed_labels(tree, shape)
        if listed is not None:
            return _Listing(database, tree, listed, (), shape.left_out.remark)
        tops, others, loose = tree.tops
        if tops and loose:
            raise UserError(
                f"{self.descriptor}: images lie both in class folders and beside them "
                f"({readable(loose)}); "
                "move the loose ones into a folder of their own"
            )
        empty = others - tops if tops else frozenset[str]()
        labelling = self.label_by(tops | empty)
        places = tuple(sorted(empty & set(labelling.classes)))
        return _Listing(database, tree, labelling, places, shape.left_out.remark)

    def _tree(self, database: sqlite3.Connection, shape: "_Shape") -> "_Tree":
        """The part of the tree that is meant: that of a split, if its first folders are splits."""
        wrapper = shape.wrapper()
        tops = _tops(_names(database), wrapper)
        if tops.loose is None and are_splits(tops.holding):
            folder = folder_of(self.split, tops.holding, self.descriptor)
            base = f"{wrapper}{folder}/"
            others = tuple(f"{wrapper}{one}/" for one in tops.holding if one != folder)
            return _Tree(base, others, _tops(_names(database), base))
        if wrapper and not self._unwrap:
            return _Tree("", (), _tops(_names(database), ""))
        return _Tree(wrapper, (), tops)

    def _listed_labels(self, tree: "_Tree", shape: "_Shape") -> Labelling | None:
        """Classes by what is said or by a file that lists them; None where folders are classes."""
        if self._options.classes == "none":
            return OneClass()
        column = self._options.label
        roots = _dataset_jsons(shape.lists, max(tree.base, shape.shared, key=len))
        if roots and not column:
            return read_dataset_json(self._contents(roots), tree.base, self.descriptor)
        contents = self._contents(_metadata(shape.lists, tree.base))
        return read_metadata(contents, tree.base, column, self.descriptor)

    def _contents(self, lists: Iterable[Found]) -> Iterator[tuple[str, bytes]]:
        left = MAX_LISTS
        for found in lists:
            where = f"{self.descriptor}: {readable(found.name)}"
            left -= found.size
            if left < 0 or found.problem:
                reason = found.problem or f"more than {MAX_LISTS} bytes of labels are not read"
                raise UserError(f"{where}: {reason}; ignore it with --classes none")
            try:
                item = Item(found.name, 0, found.size, found.location, found.modified)
                yield found.name, self.read_bytes(item)
            except ImageError as error:
                raise UserError(f"{where}: {error.reason}; fetch it again") from error
            except OSError as error:
                raise UserError(f"{where}: cannot be read ({reason_of(error)})") from error


class _Shape:
    """What a pass over all names tells of the tree."""

    def __init__(self) -> None:
        self.images = 0
        self.lists: list[Found] = []
        self.left_out = LeftOut()
        self._shared: list[str] | None = None  # the folders above every image
        self._least = 0  # the fewest folders above an image

    def watch(self, found: Iterator[Found]) -> Iterator[Found]:
        """Hand on all images and folders, and take note of all files."""
        for one in found:
            if one.kind is not IMAGE:
                if one.kind == LIST:
                    self.lists.append(one)
                else:
                    self.left_out.note(one.name)
                continue
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

    @property
    def shared(self) -> str:
        """The folders around all images as a prefix."""
        return "".join(f"{folder}/" for folder in self._shared or [])

    def wrapper(self) -> str:
        """The same, if each image lies in a further folder below them; else none."""
        return self.shared if self._least > len(self._shared or []) else ""


def _names(database: sqlite3.Connection) -> Iterator[str]:
    """Of usable images and of folders."""
    rows = database.execute("SELECT name FROM found WHERE problem = ''")
    return (_text(name) for (name,) in rows)


def _tops(names: Iterable[str], wrapper: str) -> _Tops:
    """What lies at the first level below `wrapper`."""
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
    return _Tops(frozenset(map(readable, holding)), frozenset(map(readable, others)), loose)


def _dataset_jsons(lists: Iterable[Found], root: str) -> list[Found]:
    """Those that lie nearest above all images, which lie below `root`; several of several
    archives.
    """
    known = [one for one in lists if one.name.endswith(DATASET_JSON)]
    above = [one for one in known if root.startswith(_folder(one))]
    nearest = max((len(one.name) for one in above), default=0)
    return [one for one in above if len(one.name) == nearest]


def _metadata(lists: Iterable[Found], base: str) -> list[Found]:
    """Those of the images below `base`: they may lie above it, too."""
    known = [one for one in lists if not one.name.endswith(DATASET_JSON)]
    return [one for one in known if _folder(one).startswith(base) or base.startswith(_folder(one))]


def _folder(found: Found) -> str:
    return found.name[: found.name.rfind("/") + 1]


def _check_size(item: Item) -> None:
    if item.size > MAX_BYTES:
        raise ImageError(f"{item.size} bytes are more than the {MAX_BYTES} allowed")


def _item(found: Found, listing: _Listing) -> Item:
    key = readable(found.name)
    if found.problem:
        return refused(key, found.problem, found.size, found.modified)
    key = key.removeprefix(readable(listing.tree.base))
    try:
        return Item(key, listing.labelling.label(key), found.size, found.location, found.modified)
    except ImageError as error:
        return refused(key, error.reason, found.size, found.modified, listing.labelling.unknown)


def _row(found: Found) -> tuple[bytes, int, bytes, int, str]:
    name = found.name.encode("utf-8", "surrogateescape")
    location = found.location.encode("utf-8", "surrogateescape")
    return name, found.size, location, found.modified, found.problem


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")
