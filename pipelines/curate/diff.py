"""`data diff`: settings and records that differ between two datasets, matched by key.

Each dataset is read once into a few numbers a record: a hash of the key, one of the class, one of
the tensors. Records whose tensors differ are then read again, in pairs, to say by how much.
"""

import hashlib
import json
import re
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise, takewhile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.dataset.anywhere import StoredDataset, key_hash
from pipelines.dataset.card import counted
from schemas.bars import bar
from schemas.manifest import Manifest, ShardInfo
from schemas.record import Record
from schemas.text import differing

NAMED = 5  # records named of each kind
_WIDTH = 80  # characters of a value that are shown
_LEAD = 20  # of them before the first difference, about
# where a long value may be cut: words and parts of paths, and what is between
_PIECE = re.compile(r"[^\s/]+|[\s/]")
_ONLY_IN_COMMAND = ("shards", "batch-size")  # options that no other setting tells
# Not settings: what follows from the records, and what the records are compared by.
_RESULTS = {"counts", "channels", "reconstruction", "shards", "files", "sealed"}
_Pair = tuple[int, int]  # rows in the one and in the other dataset


@dataclass(frozen=True)
class Difference:
    """Records of one kind: how many, and the first few by name."""

    count: int = 0
    names: tuple[str, ...] = ()

    def to_text(self, what: str) -> str:
        """One line."""
        more = f" and {self.count - len(self.names):,} more" if self.count > len(self.names) else ""
        return f"{counted(self.count, 'record')} {what}: {', '.join(map(_json, self.names))}{more}"


@dataclass(frozen=True)
class Comparison:
    """What differs between two datasets. `settings` maps a dotted name to both values."""

    settings: dict[str, tuple[Any, Any]]
    only_a: Difference
    only_b: Difference
    labels: Difference
    tensors: Difference
    # of the tensors, by name: largest absolute difference
    largest: dict[str, float] = field(default_factory=dict)
    common: int = 0

    @property
    def same(self) -> bool:
        """Whether nothing differs."""
        return not self.settings and self.same_records

    @property
    def same_records(self) -> bool:
        """Whether the records are the same, in whatever order."""
        return not any(part.count for part in (self.only_a, self.only_b, self.labels, self.tensors))

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        kinds = {
            "only_a": self.only_a,
            "only_b": self.only_b,
            "label": self.labels,
            "tensors": self.tensors,
        }
        records = {
            name: {"count": kind.count, "first": list(kind.names)} for name, kind in kinds.items()
        }
        settings = {name: {"a": a, "b": b} for name, (a, b) in self.settings.items()}
        return {
            "same": self.same,
            "settings": settings,
            "records": {**records, "common": self.common, "max_abs_difference": self.largest},
        }

    def _shown_settings(self) -> list[tuple[str, tuple[Any, Any]]]:
        """The settings, and in place of the command, which repeats most, the options only in it."""
        shown = {name: pair for name, pair in self.settings.items() if name != "command"}
        if "command" in self.settings:
            a, b = self.settings["command"]
            for option in _ONLY_IN_COMMAND:
                value_a, value_b = _option(a, option), _option(b, option)
                if value_a != value_b:
                    shown[option] = value_a, value_b
        return list((shown or self.settings).items())

    def to_text(self) -> str:
        """For people: one line a setting, one a kind of record."""
        lines = [f"{name}: {' -> '.join(_short(a, b))}" for name, (a, b) in self._shown_settings()]
        if self.only_a.count:
            lines.append(self.only_a.to_text("only in A"))
        if self.only_b.count:
            lines.append(self.only_b.to_text("only in B"))
        if self.labels.count:
            lines.append(self.labels.to_text("of another class"))
        if self.tensors.count:
            largest = ", ".join(f"{name} {value:.3g}" for name, value in self.largest.items())
            bound = f" (at most {largest})" if largest else ""
            lines.append(self.tensors.to_text("with other tensors") + bound)
        if self.same_records:
            verb = "is" if self.common == 1 else "are"
            lines.append(f"the {counted(self.common, 'record')} {verb} the same")
        return "\n".join(lines)


def _option(command: str, name: str) -> int | str | None:
    """What a command gives an option; None where it is not given."""
    words = shlex.split(command)
    value = next((word for option, word in pairwise(words) if option == f"--{name}"), None)
    return int(value) if value is not None and value.isdigit() else value


def _short(*values: Any) -> list[str]:
    """The values as JSON; of long ones the part around the first difference."""
    texts = [_json(value) for value in values]
    if max(map(len, texts)) <= _WIDTH:
        return texts
    letters = zip(*texts, strict=False)
    common = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, letters))
    begins = [piece.start() for piece in _PIECE.finditer(texts[0][:common])]
    start = max((begin for begin in begins if begin < common - _LEAD), default=0)
    return [_cut(text, start) for text in texts]


def _cut(text: str, start: int) -> str:
    """A text from `start` on, to the end of the word or part of a path that is the last to fit."""
    end = len(text)
    if end - start > _WIDTH:
        # At least one piece is shown, however long.
        ends = [piece.end() for piece in _PIECE.finditer(text, start)]
        end = max((place for place in ends if place - start <= _WIDTH), default=ends[0])
    return f"{'...' * (start > 0)}{text[start:end].strip()}{'...' * (end < len(text))}"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def compare(a: StoredDataset, b: StoredDataset, progress: bool | None = False) -> Comparison:
    """Compare two datasets; where all shards have the same checksums the records are not read.

    Raises:
        UserError: a shard cannot be read.
    """
    one, two = a.manifest, b.manifest
    settings = _settings(one, two)
    checksums_a = [shard.sha256 for shard in one.shards]
    checksums_b = [shard.sha256 for shard in two.shards]
    if checksums_a == checksums_b and one.classes == two.classes:
        none = Difference()
        return Comparison(settings, none, none, none, none, common=one.counts.written)
    total = one.counts.written + two.counts.written
    with bar(
        total=total,
        unit="record",
        desc="compare",
        disable=None if progress is None else not progress,
    ) as progress_bar:
        splits = min(len(one.splits), len(two.splits))
        first, second = _summarise(a, splits, progress_bar), _summarise(b, splits, progress_bar)
        return _match(a, b, first, second, settings, progress_bar)


def _settings(a: Manifest, b: Manifest) -> dict[str, tuple[Any, Any]]:
    one, two = (
        {name: value for name, value in manifest.every_field().items() if name not in _RESULTS}
        for manifest in (a, b)
    )
    return differing(one, two)


@dataclass(frozen=True)
class _Summary:
    """Hashes of key, class and tensors of each record, in the dataset's order."""

    keys: NDArray[np.uint64]
    labels: NDArray[np.uint64]
    tensors: NDArray[np.uint64]


def _summarise(dataset: StoredDataset, splits: int, bar: Any) -> _Summary:
    """Read the first one or two splits: those that both datasets have."""
    manifest = dataset.manifest
    names = _class_hashes(manifest.classes)
    rows = np.zeros((manifest.counts.written, 3), np.uint64)
    for number, split in enumerate(manifest.splits[:splits]):
        place = 0
        for shard in manifest.split_shards(split):
            for record in dataset.records(shard):
                content = _content_hash(record)
                if number == 0:
                    rows[place] = key_hash(record.key), names[record.label], content
                else:  # a mirrored record lies in the place of the record it mirrors
                    rows[place, 2] = key_hash(f"{rows[place, 2]} {content}")
                place += 1
            if number == 0:
                bar.update(shard.records)
    return _Summary(rows[:, 0], rows[:, 1], rows[:, 2])


def _class_hashes(classes: Sequence[str]) -> NDArray[np.uint64]:
    """Hashes of classes: of the name, and of how many classes before it have the same name."""
    before: Counter[str] = Counter()
    hashes = []
    for name in classes:
        hashes.append(key_hash(f"{before[name]} {name}"))
        before[name] += 1
    return np.array(hashes, np.uint64)


def _content_hash(record: Record) -> int:
    digest = hashlib.blake2b(digest_size=8)
    for name, values in record.tensors.items():
        digest.update(f"{name} {values.dtype.str} {values.shape}\n".encode())
        digest.update(values.tobytes())
    return int.from_bytes(digest.digest(), "little")


def _match(
    a: StoredDataset,
    b: StoredDataset,
    one: _Summary,
    two: _Summary,
    settings: dict[str, tuple[Any, Any]],
    bar: Any,
) -> Comparison:
    _, in_a, in_b = np.intersect1d(one.keys, two.keys, return_indices=True)
    order = np.argsort(in_a)
    in_a, in_b = in_a[order], in_b[order]
    only_a = np.setdiff1d(np.arange(one.keys.size), in_a)
    only_b = np.setdiff1d(np.arange(two.keys.size), in_b)
    relabelled = in_a[one.labels[in_a] != two.labels[in_b]]
    changed = one.tensors[in_a] != two.tensors[in_b]
    pairs = list(zip(in_a[changed].tolist(), in_b[changed].tolist(), strict=True))
    return Comparison(
        settings,
        _named(a, only_a),
        _named(b, only_b),
        _named(a, relabelled),
        _named(a, in_a[changed]),
        _largest(a, b, pairs, bar) if a.manifest.tensors == b.manifest.tensors else {},
        common=int(in_a.size),
    )


def _named(dataset: StoredDataset, rows: NDArray[np.intp]) -> Difference:
    first = [record.key for record in dataset.at(dataset.manifest.split, rows[:NAMED].tolist())]
    return Difference(int(rows.size), tuple(first))


def _largest(
    a: StoredDataset, b: StoredDataset, pairs: Sequence[_Pair], bar: Any
) -> dict[str, float]:
    """Largest absolute difference of each tensor over pairs of rows and shared splits."""
    largest = dict.fromkeys(a.manifest.tensors, 0.0)
    splits = list(zip(a.manifest.splits, b.manifest.splits, strict=False))
    bar.reset(total=len(pairs) * len(splits))
    bar.set_description("measure")
    for mine, theirs in splits:
        for record, other in _both(a, b, mine, theirs, pairs):
            for name, values in record.tensors.items():
                difference = np.abs(
                    values.astype(np.float64) - other.tensors[name].astype(np.float64)
                ).max()
                largest[name] = max(largest[name], float(difference))
            bar.update(1)
    return largest


def _both(
    a: StoredDataset, b: StoredDataset, mine: str, theirs: str, pairs: Sequence[_Pair]
) -> Iterator[tuple[Record, Record]]:
    """Pairs of records, by pairs of shards, so that two shards at a time are enough."""
    groups: dict[tuple[int, int], list[_Pair]] = {}
    starts_a = _starts(a.manifest.split_shards(mine))
    starts_b = _starts(b.manifest.split_shards(theirs))
    for row, other in pairs:
        shard_a = int(np.searchsorted(starts_a, row, side="right")) - 1
        shard_b = int(np.searchsorted(starts_b, other, side="right")) - 1
        groups.setdefault((shard_a, shard_b), []).append((row, other))
    for _, group in sorted(groups.items()):
        left = a.at(mine, [row for row, _ in group])
        right = b.at(theirs, [other for _, other in group])
        yield from zip(left, right, strict=True)


def _starts(shards: Sequence[ShardInfo]) -> NDArray[np.int64]:
    return np.cumsum([0, *(shard.records for shard in shards[:-1])])
