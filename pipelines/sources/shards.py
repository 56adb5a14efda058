"""Names of shards as WebDataset has them: braces, patterns and folders, local or URLs."""

import re
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

from pipelines.sources.names import is_hidden
from pipelines.sources.parquet_splits import of_split
from schemas.errors import UserError, reason_of
from schemas.storage import paths
from schemas.storage.url import is_url

SUFFIX = ".tar"
MOST = 100_000  # shards that one pair of braces may stand for
_NUMBERS = re.compile(r"(-?\d+)\.\.(-?\d+)(?:\.\.(-?\d+))?")
_LETTERS = re.compile(r"([A-Za-z])\.\.([A-Za-z])(?:\.\.(-?\d+))?")
_WILD = re.compile(r"[*?[]")


class Shard(NamedTuple):
    """A shard: its name, which no other has, and where it lies, as `Places.path` takes it."""

    name: str
    place: str


class Places:
    """Files, folders of shards and patterns (`*`, `?`, `[...]`), as a person wrote them.

    Args:
        names: separated by commas; with braces, as `train-{0000..0099}.tar`.
        scheme: of the source, for what is told of it.

    Raises:
        UserError: nothing is named, a local file or folder is not there, or braces that stand for
            too many.
    """

    def __init__(self, names: str, scheme: str):
        written = [paths.absolute(name) for name in _split(names) if name]
        if not written:
            raise UserError(f"{scheme}:{names}: no shard given; say {scheme}:FOLDER or FILE,FILE")
        self.descriptor = f"{scheme}:{','.join(written)}"
        self._places = list(islice((one for name in written for one in expand(name)), MOST + 1))
        if len(self._places) > MOST:
            raise UserError(f"{self.descriptor}: stands for more than {MOST:,} files")
        for place in self._places:
            if not is_url(place) and not _WILD.search(place) and not paths.exists(place):
                raise UserError(f"{place}: no such file or folder")

    def shards(self, split: str) -> list[Shard]:
        """All shards, in order; of a folder those of the split, where names tell one.

        Raises:
            UserError: there is none, no such split, two have one name, or they cannot be listed.
        """
        found = [one for number in range(len(self._places)) for one in self._of(number, split)]
        names = set[str]()
        for shard in found:
            if shard.name in names:
                raise UserError(
                    f"{self.descriptor}: two shards are called {shard.name}{SUFFIX}; give the "
                    "folder above them, or rename one"
                )
            names.add(shard.name)
        return found

    def path(self, place: str) -> str:
        """The path or URL of a shard, without a look at the storage."""
        number, _, name = place.partition(":")
        root = self._places[int(number)]
        return paths.join(_fixed(root), name) if name else root

    def _of(self, number: int, split: str) -> Iterator[Shard]:
        place = self._places[number]
        wild = _WILD.search(place)
        if place.lower().endswith(SUFFIX) and not wild:
            yield Shard(_stem(place.rpartition("/")[2]), f"{number}:")
            return
        root = _fixed(place)
        pattern = _pattern(place[len(root) :].lstrip("/")) if wild else None
        try:
            names = sorted(
                entry.name
                for entry in paths.entries(root)
                if (pattern.fullmatch(entry.name) if pattern else _is_shard(entry.name))
            )
        except OSError as error:
            raise UserError(f"{place}: cannot be read ({reason_of(error)})") from error
        if not names:
            told = "no file of that pattern" if wild else f"no {SUFFIX} file in it"
            raise UserError(f"{place}: {told}")
        for name in names if wild else of_split(names, split, place):
            yield Shard(_stem(name), f"{number}:{name}")


def expand(pattern: str) -> Iterator[str]:
    """All strings that braces stand for, as in a shell: `{0..9}`, `{000..128..4}`, `{a,b}`, nested
    and several. Braces that hold neither a range nor a comma stay.
    """
    start = pattern.find("{")
    end = _closing(pattern, start)
    if end < 0:
        yield pattern
        return
    before, inside, after = pattern[:start], pattern[start + 1 : end], pattern[end + 1 :]
    for middle in _alternatives(inside):
        for rest in expand(after):
            yield before + middle + rest


def _alternatives(inside: str) -> Iterator[str]:
    if match := _NUMBERS.fullmatch(inside):
        first, last, step = match.groups()
        padded = any(re.match(r"-?0\d", number) for number in (first, last))
        width = max(len(first), len(last)) if padded else 0
        yield from (f"{number:0{width}d}" for number in _range(int(first), int(last), step))
    elif match := _LETTERS.fullmatch(inside):
        first, last, step = match.groups()
        yield from map(chr, _range(ord(first), ord(last), step))
    elif len(parts := _split(inside)) > 1:
        for part in parts:
            yield from expand(part)
    else:
        yield from (f"{{{one}}}" for one in expand(inside))


def _range(first: int, last: int, step: str | None) -> range:
    size = abs(int(step or 1)) or 1
    return range(first, last + 1, size) if first <= last else range(first, last - 1, -size)


def _closing(text: str, start: int) -> int:
    """Where the brace that opens at `start` is closed; -1 where it is not, or none opens."""
    depth = 0
    for place in range(start, len(text)) if start >= 0 else ():
        depth += (text[place] == "{") - (text[place] == "}")
        if depth == 0:
            return place
    return -1


def _split(text: str) -> list[str]:
    """Parts between the commas that are in no braces."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter == "{") - (letter == "}")
        if letter == "," and depth <= 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def _fixed(place: str) -> str:
    """The folder that a place is, or the one that a pattern begins with."""
    wild = _WILD.search(place)
    return place[: wild.start()].rpartition("/")[0] or "/" if wild else place


def _pattern(text: str) -> re.Pattern[str]:
    """A pattern of names, where `*` and `?` stand for no slash and `**/` for any folders."""
    parts = re.split(r"(\*\*/|\*|\?|\[[^]/]+\])", text)
    known = {"**/": "(?:.*/)?", "*": "[^/]*", "?": "[^/]"}
    return re.compile(
        "".join(
            known.get(part) or (re.sub(r"^\[!", "[^", part) if number % 2 else re.escape(part))
            for number, part in enumerate(parts)
        )
    )


def _is_shard(name: str) -> bool:
    return name.lower().endswith(SUFFIX) and not is_hidden(name)


def _stem(name: str) -> str:
    return name[: -len(SUFFIX)] if name.lower().endswith(SUFFIX) else name
