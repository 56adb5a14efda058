"""Arrays out of `.npz` files, which may hold anything: whatever is wrong is a ValueError.

`numpy.load` raises a dozen kinds of exceptions about damaged files, takes an array's size from its
header, and makes room for it before it reads a byte.
"""

import math
import os
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

_SUFFIX = ".npy"
_PIECE = 1 << 24
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # those that NumPy writes
_HEADERS: dict[tuple[int, int], Callable[[IO[bytes]], Any]] = {
    (1, 0): npy.read_array_header_1_0,
    (2, 0): npy.read_array_header_2_0,
}
# What zips and headers of arrays raise: a TokenError of a header that is not closed, a RuntimeError
# for a zip that is encrypted or of another kind.
_UNREADABLE = (
    *(OSError, EOFError, RuntimeError, SyntaxError, TypeError, AttributeError, KeyError),
    *(OverflowError, tokenize.TokenError, struct.error, zlib.error, zipfile.BadZipFile),
)


def array_names(path: Path) -> list[str]:
    """Names of the arrays in an .npz file, in order.

    Raises:
        ValueError: no .npz, or a damaged one.
    """
    with _opened(path) as archive:
        return [name.removesuffix(_SUFFIX) for name in archive.namelist()]


def load_arrays(path: Path, names: Collection[str] | None = None) -> dict[str, NDArray[Any]]:
    """Arrays of an .npz file by name: all, or those of `names` that are there. No pickle is read.

    Raises:
        ValueError: no .npz, a damaged one, an array of objects, or more than this machine's memory.
    """
    with _opened(path) as archive:
        found = {info.filename.removesuffix(_SUFFIX): info for info in archive.infolist()}
        chosen = {name: found[name] for name in found if names is None or name in names}
        needed, memory = sum(info.file_size for info in chosen.values()), _memory()
        if needed > memory:
            raise ValueError(f"{needed:,} bytes of arrays, and this machine has {memory:,}")
        return {name: _array(archive, info) for name, info in chosen.items()}


def _array(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> NDArray[Any]:
    with archive.open(info) as file:
        version = npy.read_magic(file)
        if version not in _HEADERS or info.compress_type not in _METHODS:
            raise ValueError(f"{info.filename} is not an array of plain numbers")
        shape, fortran, kind = _HEADERS[version](file)
        size, left = math.prod(shape) * kind.itemsize, info.file_size - file.tell()
        if kind.hasobject or min(shape, default=0) < 0 or size != left:
            raise ValueError(f"{info.filename} holds {left} bytes, not {shape} of {kind}")
        data = bytearray(size)
        if _fill(data, file) != size:
            raise ValueError(f"{info.filename} is cut short")
    array = np.frombuffer(data, kind) if size else np.zeros(math.prod(shape), kind)
    return array.reshape(shape, order="F" if fortran else "C")


def _fill(data: bytearray, file: IO[bytes]) -> int:
    """Read a file to its end, which is where its checksum is looked at; how many bytes it had."""
    end = 0
    while piece := file.read(_PIECE):
        data[end : end + len(piece)] = piece
        end += len(piece)
    return end


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except MemoryError:
        raise ValueError("its arrays do not fit into the memory") from None
    except _UNREADABLE as error:
        reason = " ".join(str(error).split())[:160]
        raise ValueError(reason or type(error).__name__) from None


def _memory() -> int:
    """Bytes of memory of this machine."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
