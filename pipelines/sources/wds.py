"""`wds:SHARDS`: images in WebDataset shards, tars of pairs such as NAME.jpg and NAME.cls.

The labels are read while the shards are listed, the images later, each by one ranged read.
"""

import logging
import re
import sqlite3
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from itertools import groupby
from typing import NamedTuple

from pipelines.images import ImageError
from pipelines.sources.base import Item, Picture, Source
from pipelines.sources.label_values import Labels, none_labelled
from pipelines.sources.listed import FLAT_CLASS, MAX_BYTES
from pipelines.sources.names import readable
from pipelines.sources.options import SourceOptions
from pipelines.sources.refused import check_usable, refused
from pipelines.sources.shards import Places, Shard
from pipelines.sources.wds_samples import CLS, USUAL_KEY, Part, parts
from schemas.errors import UserError, reason_of
from schemas.storage import paths
from schemas.storage.url import is_url

REMOTE_READERS = 32  # shards that are listed at the same time on an object store
_TABLE = (
    "CREATE TABLE parts (shard INT, sample BLOB, extension TEXT, image INT, size INT, offset INT, "
    "problem TEXT, label TEXT)"
)
_SHOWN = 5  # kinds of members that are named as left out
_log = logging.getLogger(__name__)


class _Listed(NamedTuple):
    """A shard that was listed: when it last changed, its images and labels, what was left out."""

    modified: int
    parts: list[Part]
    others: Counter[str]


class _Listing(NamedTuple):
    """All shards; `labels` None where there are no classes; `teller` is the extension of the files
    that tell them.
    """

    database: sqlite3.Connection
    shards: list[tuple[Shard, int]]
    teller: str
    labels: Labels | None
    numbers: bool


class WdsSource(Source):
    """Images in WebDataset shards.

    Args:
        names: files, folders and patterns of shards, separated by commas; see `Places`.
        split: picks the shards of a folder that are of it, where names tell a split.
        options: which image of a sample, which key of its JSON file, and whether there are classes.

    Raises:
        UserError: no shard named, or one that is not there.
    """

    def __init__(self, names: str, split: str, options: SourceOptions):
        self._places = Places(names, "wds")
        self.descriptor = self._places.descriptor + options.suffix
        self.split = split
        self._names, self._options = names, options
        if options.classes == "none" and options.label:
            raise UserError(
                f"{self._places.descriptor}: --label-column and --classes none say two things; "
                "leave one out"
            )

    def __reduce__(self) -> tuple[type["WdsSource"], tuple[str, str, SourceOptions]]:
        names = self._places.descriptor.partition(":")[2]
        return type(self), (names, self.split, self._options)

    @property
    def classes(self) -> tuple[str, ...]:
        labels = self._listing.labels
        return (FLAT_CLASS,) if labels is None else labels.names or (FLAT_CLASS,)

    def index(self) -> Iterator[Item]:
        listing = self._listing
        count, usable = 0, 0
        for shard, sample, rows in _samples(listing.database):
            name, place, modified = *listing.shards[shard][0], listing.shards[shard][1]
            key = readable(f"{name}/{sample}")
            label, reason = _class_of(listing, rows)
            count += 1
            usable += not reason
            for image in self._images(rows, key):
                problem = image.problem or reason
                if problem:
                    yield refused(key, problem, image.size, modified)
                else:
                    yield Item(key, label, image.size, f"{image.offset}:{place}", modified)
        if count and not usable:
            raise none_labelled(self._places.descriptor, count)

    def read(self, item: Item) -> Picture:
        return Picture(self._options.decode(self._bytes(item)), item.label)

    def content(self, item: Item) -> tuple[int, bytes]:
        try:
            return item.label, self._bytes(item)
        except ImageError as error:
            return item.label, error.reason.encode()

    def _bytes(self, item: Item) -> bytes:
        check_usable(item)
        if item.size > MAX_BYTES:
            raise ImageError(f"{item.size} bytes are more than the {MAX_BYTES} allowed")
        offset, _, place = item.location.partition(":")
        path = self._places.path(place)
        data = paths.read(path, int(offset), item.size)
        if len(data) < item.size:
            raise OSError(f"{path} is shorter than it was when it was listed")
        return data

    def _images(self, rows: list[Part], key: str) -> list[Part]:
        """The image of a sample; more than one only where members have one name."""
        images = [row for row in rows if row.kind == "image"]
        chosen = self._options.image.lower().lstrip(".")
        kinds = sorted({image.extension for image in images})
        if chosen:
            missing = Part(key, chosen, "image", problem=f"no .{chosen} in this sample")
            return [image for image in images if image.extension == chosen] or [missing]
        if len(kinds) > 1:
            raise UserError(
                f"{self._places.descriptor}: the sample {key} has several images, "
                f"{', '.join(kinds)}; choose one with --image-column"
            )
        return images

    @cached_property
    def _listing(self) -> _Listing:
        database = sqlite3.connect("", check_same_thread=False)  # in memory while it is small
        database.execute("PRAGMA journal_mode = OFF")
        database.execute("PRAGMA synchronous = OFF")
        database.execute(_TABLE)
        shards, others = list[tuple[Shard, int]](), Counter[str]()
        try:
            for number, (shard, listed) in enumerate(self._walk()):
                shards.append((shard, listed.modified))
                others += listed.others
                rows = (_row(number, part) for part in listed.parts)
                database.executemany("INSERT INTO parts VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)
            return self._labelled(database, shards, others)
        except sqlite3.OperationalError as error:
            raise UserError(
                f"cannot list {self.descriptor} ({error}); make room where TMPDIR lies, or set "
                "TMPDIR"
            ) from error

    def _walk(self) -> Iterator[tuple[Shard, _Listed]]:
        """All shards in order, several at a time on an object store."""
        found = self._places.shards(self.split)
        remote = any(is_url(self._places.path(shard.place)) for shard in found)
        pool = ThreadPoolExecutor(REMOTE_READERS if remote else 1)
        waiting = deque[tuple[Shard, Future[_Listed]]]()
        try:
            for shard in found:
                path = self._places.path(shard.place)
                waiting.append((shard, pool.submit(_list, path, self._options)))
                if len(waiting) > REMOTE_READERS:
                    yield _done(*waiting.popleft())
            while waiting:
                yield _done(*waiting.popleft())
        finally:
            pool.shutdown(cancel_futures=True)

    def _labelled(
        self, database: sqlite3.Connection, shards: list[tuple[Shard, int]], others: Counter[str]
    ) -> _Listing:
        place = self._places.descriptor
        if not database.execute("SELECT count(*) FROM parts WHERE image").fetchone()[0]:
            raise UserError(f"{place}: no image in {len(shards)} shards")
        tellers = "SELECT DISTINCT extension FROM parts WHERE label IS NOT NULL"
        told = sorted(extension for (extension,) in database.execute(tellers))
        teller = told[0] if told else ""  # cls goes before json
        self._tell_left_out(database, others, teller)
        if not teller:
            self._check_not_named()
            return _Listing(database, shards, "", None, False)
        query = "SELECT DISTINCT label FROM parts WHERE label IS NOT NULL AND extension = ?"
        texts = [text for (text,) in database.execute(query, (teller,))]
        numbers = all(re.fullmatch(r"[+-]?\d+", text) for text in texts)
        where = f".{CLS}" if teller == CLS else f"{self._options.label or USUAL_KEY} in .json"
        labels = Labels(map(int, texts) if numbers else texts, f"{place}: {where}")
        return _Listing(database, shards, teller, labels, numbers)

    def _check_not_named(self) -> None:
        """No label was found, which is well where none was asked for by name."""
        if named := self._options.label:
            told_by = f".{CLS} file" if named == CLS else f"key {named} in a .json file"
            raise UserError(
                f"{self._places.descriptor}: no sample has a {told_by} (--label-column)"
            )

    def _tell_left_out(
        self, database: sqlite3.Connection, others: Counter[str], teller: str
    ) -> None:
        """One line about members that are neither an image nor its label."""
        unread = (
            "SELECT extension, count(*) FROM parts WHERE NOT image AND extension != ? GROUP BY 1"
        )
        left = others + Counter(dict(database.execute(unread, (teller,)).fetchall()))
        if left:
            kinds = ", ".join(f"{count} .{kind}" for kind, count in left.most_common(_SHOWN))
            more = ", ..." if len(left) > _SHOWN else ""
            _log.warning(
                "%s: left out %d members that are neither images nor labels (%s%s)",
                self._places.descriptor,
                left.total(),
                readable(kinds),
                more,
            )


def _list(path: str, options: SourceOptions) -> _Listed:
    found, others = list[Part](), Counter[str]()
    try:
        for part in parts(path, options):
            if part.kind == "other":
                others[part.extension] += 1
            else:
                found.append(part)
        return _Listed(paths.facts(path).modified, found, others)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({reason_of(error)})") from error


def _done(shard: Shard, future: Future[_Listed]) -> tuple[Shard, _Listed]:
    return shard, future.result()


def _samples(database: sqlite3.Connection) -> Iterator[tuple[int, str, list[Part]]]:
    """Samples that have an image: number of the shard, name, members."""
    rows = database.execute("SELECT * FROM parts ORDER BY shard, sample, rowid")
    for (shard, sample), group in groupby(rows, lambda row: (row[0], row[1])):
        name = sample.decode("utf-8", "surrogateescape")
        found = [
            Part(name, extension, "image" if image else "label", size, offset, problem, label)
            for _, _, extension, image, size, offset, problem, label in group
        ]
        if any(part.kind == "image" for part in found):
            yield shard, name, found


def _class_of(listing: _Listing, rows: list[Part]) -> tuple[int, str]:
    """The class of a sample, or why it has none."""
    if listing.labels is None:
        return 0, ""
    told = [row.label for row in rows if row.extension == listing.teller and row.label is not None]
    if not told:
        return 0, "no label"
    number = listing.labels.number(int(told[0]) if listing.numbers else told[0])
    return (0, f"no class of the label {told[0]}") if number is None else (number, "")


def _row(shard: int, part: Part) -> tuple[int, bytes, str, bool, int, int, str, str | None]:
    return (
        shard,
        part.sample.encode("utf-8", "surrogateescape"),
        readable(part.extension),
        part.kind == "image",
        part.size,
        part.offset,
        part.problem,
        part.label,
    )
