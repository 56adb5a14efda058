"""Feature rows on disk, for what needs more than sums of them: neighbours, kernels, subsets.

`STATISTICS.npz` has its rows in `STATISTICS.features.npy`, (n, dim) float32 in the order of the images. Its statistics
name the SHA-256, so rows and sums cannot be mixed up.
"""

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation import parts
from schemas.errors import UserError
from schemas.files import sha256_file
from schemas.statistics import FeatureStatistics


def rows_path(statistics: Path) -> Path:
    """Where the rows of a statistics file lie."""
    return statistics.with_name(f"{statistics.name.removesuffix('.npz')}.features.npy")


@contextlib.contextmanager
def writer(statistics: Path, index: int, *, keep: bool) -> Iterator[Callable[[NDArray[np.float32]], None]]:
    """Takes blocks of rows (n, dim) of one range, in order; the part is there in the end. May do nothing."""
    if not keep:
        yield lambda block: None
        return
    path = parts.rows_path(statistics, index)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    with open(unfinished, "wb") as file:
        yield lambda block: np.ascontiguousarray(block, np.float32).tofile(file)
    unfinished.replace(path)


def assemble(statistics: Path, ranges: int, shape: tuple[int, int]) -> dict[str, Any]:
    """Join the parts into a rows file of (n, dim); what `read_rows` will ask the statistics for."""
    path = rows_path(statistics)
    unfinished = path.with_name(f".{path.name}.tmp")
    joined = np.lib.format.open_memmap(unfinished, mode="w+", dtype=np.float32, shape=shape)
    start = 0
    for index in range(ranges):
        part = np.fromfile(parts.rows_path(statistics, index), np.float32).reshape(-1, shape[1])
        joined[start : start + len(part)] = part
        start += len(part)
    if start != shape[0]:
        raise RuntimeError(f"{start} feature rows of {shape[0]}")
    joined.flush()
    del joined
    unfinished.replace(path)
    return {"sha256": sha256_file(path)}


def read_rows(path: Path, statistics: FeatureStatistics) -> NDArray[np.float32]:
    """The rows (n, dim) float32 of a statistics file, mapped from disk.

    Raises:
        UserError: they were not kept, are not there, or are others.
    """
    file = rows_path(path)
    if "features" not in statistics.protocol:
        raise UserError(f"{path}: holds sums only; repeat its `flowtrain stats` with --features")
    try:
        stat = file.stat()
        if _digest(str(file), stat.st_size, stat.st_mtime_ns) != statistics.protocol["features"]["sha256"]:
            raise ValueError
        return np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError):
        raise UserError(f"{file}: missing or not the rows of {path}; repeat its `flowtrain stats`") from None


@functools.lru_cache(maxsize=16)
def _digest(file: str, size: int, changed: int) -> str:
    """Of a file as it is now; not read again while its size and time are the same."""
    return sha256_file(Path(file))
