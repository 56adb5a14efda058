"""Which files of a folder are a split, by their names, as Hugging Face's `datasets` goes by them.

In this order: `SPLIT-00000-of-00005.parquet`; a folder that is named for a split
(`default/train/0000.parquet`); a file that is (`train.parquet`); else all files are one split.
"""

import re
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

from schemas.errors import UserError

_PART = re.compile(r"(?P<split>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?:-[0-9a-f]+)?\.\w+")
_SEPARATORS = re.compile(r"[-._ 0-9]+")  # around a word in a name; `datasets` has the same ones
_SHOWN = 3
_WORDS = {
    word: words[0]
    for words in (
        ("train", "training"),
        ("validation", "valid", "val", "dev"),
        ("test", "testing", "eval", "evaluation"),
    )
    for word in words
}


class _Told(NamedTuple):
    """A file, the split that its name tells, and the folder which that split is one of."""

    name: str
    split: str
    above: str
    rank: int  # of the way it was told in: a lower one goes before


def of_split(names: Sequence[str], split: str, where: str) -> list[str]:
    """The split's files; all, if no name tells a split.

    Args:
        names: of files, relative to the folder that was given.
        split: as it was asked for; another word for it (`valid`, `dev`) will do.
        where: the source, for what is told of it, without options.

    Raises:
        UserError: no such split, it is there in several folders, or one of its files is missing.
    """
    told = list(filter(None, (_tell(name, split) for name in names)))
    if not told:
        return list(names)
    chosen = _meant(told, split)
    if not chosen:
        known = " and ".join(sorted({one.split for one in told}))
        raise UserError(f"{where}: no split {split!r}; it has {known} (--split)")
    _check_folder([one.above for one in chosen], split, where)
    _check_numbers([one.name for one in chosen], split, where)
    return [one.name for one in chosen]


def named_split(folders: Sequence[str], split: str, where: str) -> str:
    """The folder that is named for a split, of those that all are.

    Raises:
        UserError: there is none.
    """
    for fits in (split, _WORDS.get(split, split)):
        found = [one for one in folders if fits in (one, _split_in(one))]
        if len(found) == 1 or split in found:
            return split if split in found else found[0]
    known = " and ".join(sorted(folders))
    raise UserError(f"{where}: no split {split!r}; it has {known} (--split)")


def _meant(told: Sequence[_Told], split: str) -> list[_Told]:
    """Those of the very split, else of another word for it, told in the way that goes before."""
    usual = _WORDS.get(split, split)
    chosen = [one for one in told if one.split == split]
    if not chosen:
        chosen = [one for one in told if (_split_in(one.split) or one.split) == usual]
    best = min((one.rank for one in chosen), default=0)
    return [one for one in chosen if one.rank == best]


def _tell(name: str, split: str) -> _Told | None:
    path = PurePosixPath(name)
    part = _PART.fullmatch(path.name)
    word = part["split"] if part else ""
    if word and (word == split or _split_in(word)):
        return _Told(name, word, str(path.parent), 0)
    folders = path.parts[:-1]
    for depth in reversed(range(len(folders))):
        if found := split if folders[depth] == split else _split_in(folders[depth]):
            return _Told(name, found, "/".join(folders[:depth]) or ".", 1)
    found = word or (split if path.stem == split else _split_in(path.stem))
    return _Told(name, found, str(path.parent), 2) if found else None


def _split_in(text: str) -> str:
    """The split that a word of the text names; "" where none does, or more than one."""
    found = {_WORDS[word] for word in _SEPARATORS.split(text.lower()) if word in _WORDS}
    return found.pop() if len(found) == 1 else ""


def _check_folder(above: Sequence[str], split: str, where: str) -> None:
    """Refuse files of one split that lie in several folders."""
    folders = sorted(set(above))
    if len(folders) > 1:
        shown = _first_few(folders, " and ")
        raise UserError(
            f"{where}: files of {split!r} are in {len(folders)} folders ({shown}), as those of "
            "several configurations; "
            f"name the one that is meant, like {where}/{folders[-1]}, or take the others out"
        )


def _check_numbers(names: Sequence[str], split: str, where: str) -> None:
    """Refuse files of one split that are not numbered from 0 to their count, each of them there."""
    matches = list(filter(None, (_PART.fullmatch(PurePosixPath(name).name) for name in names)))
    if not matches:
        return
    words = sorted({match["split"] for match in matches})
    if len(words) > 1:
        raise UserError(
            f"{where}: files of {split!r} are called {_first_few(words, ' and ')}; keep one kind"
        )
    counts = {int(match["count"]) for match in matches}
    if len(counts) > 1:
        raise UserError(
            f"{where}: files of {split!r} cut into {' and '.join(map(str, sorted(counts)))}; keep "
            "one kind"
        )
    missing = sorted(set(range(*counts)) - {int(match["number"]) for match in matches})
    if missing:
        shown = _first_few([f"{number:05d}" for number in missing], ", ")
        raise UserError(
            f"{where}: of {split!r} the files {shown} are missing ({len(missing)} in all); fetch "
            "them"
        )


def _first_few(words: Sequence[str], separator: str) -> str:
    more = ", ..." if len(words) > _SHOWN else ""
    return separator.join(words[:_SHOWN]) + more
