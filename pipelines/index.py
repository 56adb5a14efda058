"""The index of a dataset: which item is in which place. Written once, before any shard.

Items are sorted by key, later ones of the same key dropped, then put in the order of a keyed hash of their keys. A hash
and not a random generator, so that the order follows from the seed on any version of any library.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from operator import attrgetter

from pipelines.sources import Item
from pipelines.storage import WORK, LocalDirectory

INDEX_NAME = f"{WORK}/index.jsonl"


_FIELDS = attrgetter("key", "label", "size", "location")


@dataclass(frozen=True)
class Index:
    """The items of a dataset in their final order, what was left out, and the digests of all that was listed.

    `digest` is of keys, labels and sizes and the same wherever the source lies; `times` is of the times of change, by
    which to tell an image that was replaced by another one of the same size.
    """

    items: tuple[Item, ...]
    duplicates: int
    digest: str
    times: str

    @cached_property
    def _lines(self) -> list[bytes]:
        return [_line(item) for item in self.items]

    def encode(self) -> bytes:
        """JSON lines, one an item: [key, label, size, location]."""
        return b"".join(self._lines)

    def offsets(self, bounds: Sequence[int]) -> list[int]:
        """Byte offsets in `encode()` of the rows in `bounds`, so that a worker reads its slice only."""
        starts = [0, *accumulate(map(len, self._lines))]
        return [starts[row] for row in bounds]


def build_index(items: Iterable[Item], seed: int) -> Index:
    """Sort, drop duplicate keys (the first by key, label, size and location stays), permute by `seed`."""
    listed = sorted(items, key=_FIELDS)
    digest = hashlib.sha256()
    for item in listed:
        digest.update(json.dumps([item.key, item.label, item.size]).encode() + b"\n")
    times = hashlib.sha256("\n".join(str(item.modified) for item in listed).encode())
    unique = {item.key: item for item in reversed(listed)}
    order = sorted(unique.values(), key=lambda item: _rank(seed, item.key))
    return Index(tuple(order), len(listed) - len(unique), digest.hexdigest(), times.hexdigest())


def read_index(directory: LocalDirectory, start: int, length: int) -> list[Item]:
    """The items of a byte range of the index file, without their times."""
    lines = directory.read(INDEX_NAME, start, length).splitlines()
    return [Item(*json.loads(line)) for line in lines]


def _rank(seed: int, key: str) -> bytes:
    return hashlib.blake2b(f"{seed}\n{key}".encode(), digest_size=16).digest()


def _line(item: Item) -> bytes:
    # ASCII escapes keep the undecodable bytes of a file name, which Python holds as lone surrogates.
    return json.dumps(_FIELDS(item), ensure_ascii=True).encode() + b"\n"
