"""Trees whose first folders are splits (`train/`, `val/`), with the classes below.

The names are the keywords by which Hugging Face's `datasets` finds splits, in letters of any case.
"""

from collections.abc import Iterable

from schemas.errors import UserError

_NAMES = (
    ("train", "training"),
    ("val", "valid", "validation", "dev"),
    ("test", "testing", "eval", "evaluation"),
)
_SPLITS = {name: group for group in _NAMES for name in group}


def are_splits(folders: Iterable[str]) -> bool:
    """Whether all of these folders, and there are some, are called as splits are.

    A class called "test" among other classes is a class.
    """
    names = [folder.lower() for folder in folders]
    return bool(names) and all(name in _SPLITS for name in names)


def folder_of(split: str, folders: Iterable[str], where: str) -> str:
    """The folder of a split: the one that is called so, else the only one that means the same.

    Raises:
        UserError: none of them, or several; `where` begins the line.
    """
    names = sorted(folders)
    if split in names:
        return split
    group = _SPLITS.get(split.lower())
    same = [name for name in names if group is not None and _SPLITS[name.lower()] is group]
    if len(same) == 1:
        return same[0]
    what = f"{' and '.join(same)} may both be" if same else "there is no folder of"
    raise UserError(
        f"{where}: its first folders are splits, and {what} the split {split!r}; say --split "
        f"{' or '.join(same or names)}"
    )
