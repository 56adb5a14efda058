"""The index of a dataset: which item is in which place. Written once, before any shard.

Items are sorted by key, images that are listed again are dropped, then they are put in the order of
a keyed hash of their keys. A hash and not a random generator, so that the order follows from the
seed on any version of any library. SQLite sorts, in a temporary file of its own once the items
outgrow its cache: memory does not grow with the source.
"""

import hashlib
import json
import operator
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from pipelines.sources import Item, Source
from schemas.errors import UserError
from schemas.json_text import parse_json
from schemas.storage.directory import Directory

INDEX_NAME = "index.jsonl"  # in the folder `Settings.work`
_HASH_BYTES = 16
_PIECE = 1 << 20  # bytes of the index file that are read at once
# Keys as bytes, so that they sort by code point. `line` is what the index file holds of the item.
_LISTED = "CREATE TABLE listed (key BLOB, label INT, size INT, modified INT, rank BLOB, line BLOB)"
_UNIQUE = "CREATE TABLE chosen (rank BLOB, line BLOB)"
_ORDERED = "CREATE TABLE ordered AS SELECT line FROM chosen ORDER BY rank, line"


@dataclass(frozen=True)
class Index:
    """The items of a dataset in their final order, what was left out, and the digests of all that
    was listed.

    `digest` is of keys, labels and sizes and the same wherever the source lies; `state` is of times
    of change and of where the bytes are, by which to tell an image or an archive that was replaced
    by another one of the same size.
    """

    database: sqlite3.Connection  # private and temporary; holds the table `ordered`
    records: int
    duplicates: int
    digest: str
    state: str

    def items(self) -> Iterator[Item]:
        """The items in order, without their times and groups."""
        return map(_item, self.lines())

    def lines(self) -> Iterator[bytes]:
        """JSON lines, one an item: [key, label, size, location]."""
        return (
            line for (line,) in self.database.execute("SELECT line FROM ordered ORDER BY rowid")
        )

    def offsets(self, bounds: Sequence[int]) -> list[int]:
        """Byte offsets in the index file of the rows in `bounds` (ascending), so that a worker
        reads its slice only.
        """
        wanted = iter(bounds)
        offsets: list[int] = []
        row = next(wanted, None)
        lengths = self.database.execute("SELECT length(line) FROM ordered ORDER BY rowid")
        for number, start in enumerate(accumulate((length for (length,) in lengths), initial=0)):
            while row == number:
                offsets.append(start)
                row = next(wanted, None)
        return offsets


def build_index(
    items: Iterable[Item],
    seed: int,
    fingerprint: str = "",
    same: Callable[[Item, Item], bool] = operator.eq,
) -> Index:
    """Sort, drop duplicates (the first by key, label, size and location stays), permute by `seed`.

    Args:
        items: in any order; they are taken one by one.
        seed: of the permutation.
        fingerprint: what else identifies the source (`Source.fingerprint`).
        same: whether two items of one key are one image (`Source.same`).

    Raises:
        UserError: two images have one key, or the temporary disk is full.
        OSError: `same` cannot read them.
    """
    database = sqlite3.connect("")  # no name: a temporary database, in memory while it is small
    database.execute("PRAGMA journal_mode = OFF")
    database.execute("PRAGMA synchronous = OFF")
    database.execute(_LISTED)
    try:
        database.executemany(
            "INSERT INTO listed VALUES (?, ?, ?, ?, ?, ?)", (_row(item, seed) for item in items)
        )
        return _order(database, fingerprint, same)
    except sqlite3.OperationalError as error:
        raise UserError(
            f"cannot sort the index ({error}); make room where TMPDIR lies, or set TMPDIR"
        ) from error


def index_of(source: Source, seed: int) -> Index:
    """The index of all items of a source; raises as `build_index`, and as `Source.index`."""
    return build_index(source.index(), seed, source.fingerprint, source.same)


def _order(
    database: sqlite3.Connection, fingerprint: str, same: Callable[[Item, Item], bool]
) -> Index:
    digest, state = hashlib.sha256(fingerprint.encode()), hashlib.sha256()
    listed = 0

    def unique() -> Iterator[tuple[bytes, bytes]]:
        nonlocal listed
        last, first = None, b""
        columns = "key, label, size, modified, rank, line"
        for key, label, size, modified, rank, line in database.execute(
            f"SELECT {columns} FROM listed ORDER BY key, label, size, line"
        ):
            listed += 1
            digest.update(json.dumps([key.decode(), label, size]).encode() + b"\n")
            state.update(b"%d " % modified + line)
            if key != last:
                last, first = key, line
                yield rank, line
            elif not same(_item(first), _item(line)):
                raise UserError(
                    f"two images are called {key.decode()} and are not the same; a record's key is "
                    "its name, so rename one of them, or put them into folders of their own"
                )

    database.execute(_UNIQUE)
    database.executemany("INSERT INTO chosen VALUES (?, ?)", unique())
    database.execute("DROP TABLE listed")
    database.execute(_ORDERED)
    database.execute("DROP TABLE chosen")
    (records,) = database.execute("SELECT count(*) FROM ordered").fetchone()
    return Index(database, records, listed - records, digest.hexdigest(), state.hexdigest())


def write_index(directory: Directory, name: str, index: Index) -> None:
    """Write the index file, whole or not at all."""
    with directory.staging() as folder:
        staged = folder / INDEX_NAME
        with open(staged, "wb") as file:
            file.writelines(index.lines())
        directory.publish(staged, name)


def index_is(directory: Directory, name: str, index: Index) -> bool:
    """Whether an index file holds this index, byte for byte; read piece by piece."""
    wanted, found = hashlib.sha256(), hashlib.sha256()
    length = 0
    for line in index.lines():
        wanted.update(line)
        length += len(line)
    for offset in range(0, length + 1, _PIECE):  # one byte more than there should be is seen too
        found.update(directory.read(name, offset, min(_PIECE, length + 1 - offset)))
    return wanted.digest() == found.digest()


def read_index(directory: Directory, name: str, start: int, length: int) -> Iterator[Item]:
    """The items of a byte range of the index file, without their times and groups; read piece by
    piece.
    """
    end, rest = start + length, b""
    for offset in range(start, end, _PIECE):
        lines = (rest + directory.read(name, offset, min(_PIECE, end - offset))).splitlines(
            keepends=True
        )
        rest = lines.pop() if lines and not lines[-1].endswith(b"\n") else b""
        yield from map(_item, lines)
    if rest:
        raise ValueError(f"{name} does not hold whole lines from byte {start} to {end}")


def _row(item: Item, seed: int) -> tuple[bytes, int, int, int, bytes, bytes]:
    together = _hash(seed, item.group) if item.group else bytes(_HASH_BYTES)
    # ASCII escapes keep the undecodable bytes of a file name, which Python holds as lone
    # surrogates.
    line = (
        json.dumps([item.key, item.label, item.size, item.location], ensure_ascii=True).encode()
        + b"\n"
    )
    key = item.key.encode()
    return key, item.label, item.size, item.modified, together + _hash(seed, item.key), line


def _hash(seed: int, text: str) -> bytes:
    return hashlib.blake2b(f"{seed}\n{text}".encode(), digest_size=_HASH_BYTES).digest()


def _item(line: bytes) -> Item:
    return Item(*parse_json(line))
