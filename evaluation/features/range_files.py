"""Files of sums and feature rows, one for each range of images, until the last step adds them up.

They lie in `STATISTICS.npz.parts/KEY/`, where KEY stands for all that they depend on, and stay
there when a run is killed.
"""

import shutil
from pathlib import Path

from schemas.errors import reason_of


def root(statistics: Path) -> Path:
    """Where the parts of a statistics file lie, of whatever was measured for it."""
    return statistics.with_name(f"{statistics.name}.parts")


def folder(statistics: Path, key: str) -> Path:
    """Where those of one key lie; it is there after the call."""
    path = root(statistics) / key
    path.mkdir(parents=True, exist_ok=True)
    return path


def sums_path(statistics: Path, key: str, index: int) -> Path:
    """The sums of a range."""
    return folder(statistics, key) / f"{index:05d}.npz"


def rows_path(statistics: Path, key: str, index: int) -> Path:
    """The feature rows of a range, float32 and nothing else."""
    return folder(statistics, key) / f"{index:05d}.rows"


def unwritable(path: Path, error: OSError) -> str:
    """What to tell when statistics or their parts cannot be written."""
    return f"{path}: cannot be written ({reason_of(error)}); mend that and repeat"


def keep_only(statistics: Path, key: str) -> None:
    """Delete what earlier commands left of something else."""
    for path in root(statistics).iterdir() if root(statistics).is_dir() else ():
        if path.name != key:
            shutil.rmtree(path, ignore_errors=True)


def discard(statistics: Path) -> None:
    """Delete them all."""
    shutil.rmtree(root(statistics), ignore_errors=True)
