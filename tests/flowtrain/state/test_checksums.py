"""Checksums of a folder: every flipped bit of an item's file is named, and so is what is not of
this step.
"""

import random
import shutil
import zlib
from pathlib import Path

import pytest

from flowtrain.state.checksums import (
    CHECKSUMS,
    check_items,
    crc_of,
    read_checksums,
    write_checksums,
)
from schemas.files import write_atomic

FILES = {"a/d/x": 2_000_000, "a/meta": 40, "a0.5/x": 1, "b/empty": 0, "b/x": 2000}


def _make(folder: Path, seed: int = 0) -> Path:
    drawn = random.Random(seed)
    for name, size in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(drawn.randbytes(size))
    (folder / "written_last").write_text("at the root")
    write_checksums(folder, 7)
    return folder


def _check(folder: Path, *items: str) -> None:
    known = read_checksums(folder, 7)
    assert known is not None
    check_items(folder, known, items)


def flip(path: Path, bit: int) -> None:
    """Flip a bit of a file, in place."""
    with open(path, "r+b") as file:
        file.seek(bit // 8)
        (byte,) = file.read(1)
        file.seek(bit // 8)
        file.write(bytes([byte ^ 1 << bit % 8]))


def test_the_sum_is_zlibs_of_the_whole_file(tmp_path: Path):
    _make(tmp_path)
    for name in FILES:
        assert crc_of(tmp_path / name) == f"{zlib.crc32((tmp_path / name).read_bytes()):08x}"
    assert set(read_checksums(tmp_path, 7) or {}) == set(FILES), "none of what is outside of items"


def test_every_flipped_bit_is_named_and_in_the_items_asked_for_alone(tmp_path: Path):
    _make(tmp_path)
    _check(tmp_path, "a", "a0.5", "b", "not there")
    for name, size in FILES.items():
        item = name.split("/")[0]
        for bit in random.Random(1).sample(range(8 * size), min(8 * size, 12)):
            flip(tmp_path / name, bit)
            with pytest.raises(ValueError, match=f"^{name}: its bytes are not those that were"):
                _check(tmp_path, item)
            _check(tmp_path, *({"a", "a0.5", "b"} - {item}))
            flip(tmp_path / name, bit)
    _check(tmp_path, "a", "a0.5", "b")


def test_every_flipped_bit_of_the_checksums_is_named(tmp_path: Path):
    _make(tmp_path)
    path = tmp_path / CHECKSUMS
    bits = 8 * path.stat().st_size
    for bit in random.Random(2).sample(range(bits), 100):
        flip(path, bit)
        with pytest.raises(ValueError, match=f"^{CHECKSUMS}: "):
            read_checksums(tmp_path, 7)
        flip(path, bit)


def test_what_was_lost_added_or_copied_is_named(tmp_path: Path):
    folder, other = _make(tmp_path / "7"), _make(tmp_path / "other", seed=1)
    (folder / "a" / "meta").unlink()
    with pytest.raises(ValueError, match=r"^a/meta: it is missing"):
        _check(folder, "a")
    shutil.copytree(other / "a0.5", folder / "a0.5", dirs_exist_ok=True)
    with pytest.raises(ValueError, match=r"^a0\.5/x: its bytes are not"):
        _check(folder, "a0.5")
    shutil.copytree(other / "a", folder / "c")
    with pytest.raises(ValueError, match=r"^c: it was not saved with this step"):
        _check(folder, "b", "c")
    with pytest.raises(ValueError, match=f"^{CHECKSUMS}: it is of step 7"):
        read_checksums(folder, 8)


def test_a_file_cut_or_lengthened_by_zeros_is_named(tmp_path: Path):
    _make(tmp_path)
    path = tmp_path / "b" / "x"
    data = path.read_bytes()
    for changed in (data[:-1], data + b"\0", b"\0" + data, b""):
        write_atomic(path, changed)
        with pytest.raises(ValueError, match=r"^b/x: its bytes"):
            _check(tmp_path, "b")


def test_without_the_file_nothing_is_known(tmp_path: Path):
    (_make(tmp_path) / CHECKSUMS).unlink()
    assert read_checksums(tmp_path, 7) is None
