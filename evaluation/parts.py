"""Files of the ranges of a set of images, from the workers that measured them to the step that puts them together.

They lie in `STATISTICS.npz.parts/` and stay there when a run is killed.
"""

import shutil
from pathlib import Path


def folder(statistics: Path) -> Path:
    """Where the parts of a statistics file lie; it is there after the call."""
    path = statistics.with_name(f"{statistics.name}.parts")
    path.mkdir(parents=True, exist_ok=True)
    return path


def sums_path(statistics: Path, index: int) -> Path:
    """The sums of a range."""
    return folder(statistics) / f"{index:05d}.npz"


def rows_path(statistics: Path, index: int) -> Path:
    """The feature rows of a range, float32 and nothing else."""
    return folder(statistics) / f"{index:05d}.rows"


def discard(statistics: Path) -> None:
    """Delete them all."""
    shutil.rmtree(folder(statistics))
