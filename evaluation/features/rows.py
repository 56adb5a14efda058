"""Feature rows on disk, for what needs more than sums of them: neighbours, kernels, subsets.

`STATISTICS.npz` has its rows in `STATISTICS.features.npy`, (n, dim) float32 in the order of the
images. Its statistics name the SHA-256, so rows and sums cannot be mixed up.
"""

import contextlib
import functools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.features import range_files
from schemas.errors import UserError
from schemas.files import sha256_file, written_whole
from schemas.statistics import FeatureStatistics

_ROW_TYPE = np.dtype("<f4")


def rows_path(statistics: Path) -> Path:
    """Where the rows of a statistics file lie."""
    return statistics.with_name(f"{statistics.name.removesuffix('.npz')}.features.npy")


@contextlib.contextmanager
def writer(
    statistics: Path, key: str, index: int, *, keep: bool
) -> Iterator[Callable[[NDArray[np.float32]], None]]:
    """Takes a range's rows (n, dim) block by block, in order; without `keep` it drops them."""
    if not keep:
        yield lambda block: None
        return
    with written_whole(range_files.rows_path(statistics, key, index)) as file:
        yield lambda block: np.ascontiguousarray(block, np.float32).tofile(file)


def range_is_whole(statistics: Path, key: str, index: int, shape: tuple[int, int]) -> bool:
    """Whether the rows (n, dim) of a range are there."""
    path = range_files.rows_path(statistics, key, index)
    return path.is_file() and path.stat().st_size == shape[0] * shape[1] * _ROW_TYPE.itemsize


def assemble(statistics: Path, key: str, ranges: int, shape: tuple[int, int]) -> dict[str, Any]:
    """Join the parts into a rows file of (n, dim); what `read_rows` will ask the statistics for.

    Raises:
        RuntimeError: they are not n rows.
    """
    path = rows_path(statistics)
    facts = {
        "descr": np.lib.format.dtype_to_descr(_ROW_TYPE),
        "fortran_order": False,
        "shape": shape,
    }
    with written_whole(path) as file:
        np.lib.format.write_array_header_1_0(file, facts)
        before = file.tell()
        for index in range(ranges):
            with open(range_files.rows_path(statistics, key, index), "rb") as part:
                shutil.copyfileobj(part, file, 1 << 24)
        if file.tell() - before != shape[0] * shape[1] * _ROW_TYPE.itemsize:
            raise RuntimeError(
                f"{file.tell() - before} bytes of feature rows, not those of {shape}"
            )
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
        digest = _digest(str(file), stat.st_size, stat.st_mtime_ns)
        if digest != statistics.protocol["features"]["sha256"]:
            raise ValueError
        return np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError):
        raise UserError(
            f"{file}: missing or not the rows of {path}; repeat its `flowtrain stats`"
        ) from None


@functools.lru_cache(maxsize=16)
def _digest(file: str, size: int, changed: int) -> str:
    """Of a file as it is now; not read again while its size and time are the same."""
    return sha256_file(Path(file))
