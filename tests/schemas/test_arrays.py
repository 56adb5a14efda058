"""Arrays of .npz files as NumPy reads them, and every damage as a ValueError."""

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from schemas.arrays import array_names, load_arrays

ARRAYS = {
    "normal": np.random.default_rng(0).normal(size=(3, 4)),
    "fortran": np.asfortranarray(np.random.default_rng(1).normal(size=(5, 6))),
    "text": np.array("a protocol"),
    "names": np.array(["x", "yy"]),
    "scalar": np.array(4),
    "empty": np.zeros((0, 3), np.float32),
    "big": np.arange(5, dtype=">i4"),
}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_are_those_of_numpy(save: Callable[..., None], tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    save(path, **ARRAYS)
    assert array_names(path) == list(ARRAYS)
    found = load_arrays(path)
    for name, array in ARRAYS.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)
    assert load_arrays(path, ("text", "none")).keys() == {"text"}


def with_header(header: str, data: bytes = b"", version: bytes = b"\1\0") -> bytes:
    text = header.encode()
    return b"\x93NUMPY" + version + len(text).to_bytes(2, "little") + text + data


def described(shape: str, kind: str = "'<f8'") -> bytes:
    return with_header(f"{{'descr': {kind}, 'fortran_order': False, 'shape': {shape}}}\n")


DEEP = "(" * 9000
HOSTILE = {
    "huge": described(f"({10**15},)"),
    "huge of nothing": described(f"({10**15},)", "'<U0'"),
    "overflow": described(f"({2**70},)"),
    "negative": described("(-5,)"),
    "unclosed": with_header("{'descr': '<f8', 'shape': (1,"),
    "unclosed text": with_header("{'descr': '''<f8"),
    "deep": with_header(DEEP),
    "objects": described("()", "'|O'"),
    "version": with_header("{}", version=b"\3\0"),
    "no header": b"\x93NUMPY",
    "more behind": described("(1,)") + bytes(16),
    "cut": described("(3,)") + bytes(16),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.filterwarnings("default")  # NumPy's, of headers by Python 2
def test_headers_of_no_array_are_a_value_error(name: str, tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("mu.npy", HOSTILE[name])
    with pytest.raises(ValueError, match=r"\w"):
        load_arrays(path)


def written(save: Callable[..., None], **arrays: Any) -> bytes:
    content = io.BytesIO()
    save(content, **arrays)
    return content.getvalue()


def test_any_damage_is_a_value_error_or_none_at_all(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    array = np.random.default_rng(0).integers(0, 9, 100)
    for save in (np.savez, np.savez_compressed):
        whole = written(save, mu=array)
        for place in range(0, len(whole), 3):
            damaged = bytearray(whole)
            damaged[place] ^= 0xFF
            path.write_bytes(damaged)
            try:
                found = load_arrays(path)
            except ValueError:
                continue
            np.testing.assert_array_equal(found.get("mu", array), array)


def test_a_size_beyond_the_memory_is_told_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    whole = bytearray(written(np.savez, mu=np.zeros(3)))
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        size = archive.infolist()[0].file_size
    place = whole.rindex(b"PK\x01\x02") + 24
    assert int.from_bytes(whole[place : place + 4], "little") == size
    extra = bytearray(whole)
    extra[place : place + 4] = (2**32 - 2).to_bytes(4, "little")
    path.write_bytes(extra)
    with pytest.raises(ValueError, match="bytes"):
        load_arrays(path)
    path.write_bytes(b"no zip")
    with pytest.raises(ValueError, match="not a zip"):
        array_names(path)
