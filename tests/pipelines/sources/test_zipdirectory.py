"""A zip's central directory against Python's zipfile, and what is refused as cut or damaged."""

import os
import zipfile
from pathlib import Path

import pytest

from pipelines.sources.ranges import RangeFile
from pipelines.sources.zipdirectory import Member, directory
from tests.pipelines.sources.miniature import png
from tests.pipelines.sources.prepared import make_zip
from tests.refusals import refused

END = b"PK\x05\x06"


def members(path: Path) -> list[Member]:
    with RangeFile(str(path)) as file:
        return list(directory(file, str(path)))


def refusal(path: Path) -> str:
    line = refused(lambda: members(path))
    assert line.startswith(f"{path}: ")
    return line


def check_against_zipfile(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        expected = [
            (info.filename, info.file_size, info.compress_size, info.header_offset, info.CRC)
            for info in archive.infolist()
        ]
    found = [(m.name, m.size, m.compressed, m.offset, m.crc) for m in members(path)]
    assert found == expected


def test_every_kind_of_member_is_found_as_by_zipfile(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.comment = b"a comment" * 99
        for number in range(300):
            member = zipfile.ZipInfo(f"{number}/é{'x' * (number % 70)}.png")
            member.extra = b"\x99\x99\x04\x00abcd" * (number % 3)
            member.comment = b"c" * (number % 5)
            with archive.open(member, "w", force_zip64=number % 2 == 0) as file:
                file.write(os.urandom(number))
    check_against_zipfile(path)


def test_zip64(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # so that the Zip64 records are written for a small one
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 10)
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 100)
    contents = {f"{n:03d}.png": png(size=(n + 1, 9)) for n in range(30)}
    path = make_zip(tmp_path / "x.zip", contents)
    assert b"PK\x06\x06" in path.read_bytes()
    check_against_zipfile(path)
    assert len(members(path)) == 30


def test_backslashes_of_windows(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for system in (0, 3, 10):
            member = zipfile.ZipInfo("x")
            member.filename, member.create_system = f"cat\\{system}.png", system
            archive.writestr(member, png())
    names = [member.name for member in members(tmp_path / "x.zip")]
    assert names == ["cat/0.png", "cat\\3.png", "cat/10.png"], "of Unix they are part of a name"


def test_an_end_within_the_comment_is_none(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.png", png())
        archive.comment = (END + b"\xff" * 18) * 3
    assert [member.name for member in members(path)] == ["a.png"]


def test_a_cut_zip_never_passes_for_a_whole_one(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "x.zip", {f"{n}.png": png() for n in range(9)})
    whole = path.read_bytes()
    for cut in range(4, len(whole), 7):
        path.write_bytes(whole[:cut])
        assert "fetch it again" in refusal(path)
    path.write_bytes(whole[:200] + whole[400:])
    assert "damaged or cut" in refusal(path)
    path.write_bytes(b"more" + whole)
    assert "something stands before or within its directory" in refusal(path)


def test_damage_in_the_directory_is_told(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "x.zip", {f"{n}.png": png() for n in range(9)})
    data = bytearray(path.read_bytes())
    data[data.rindex(b"PK\x01\x02")] ^= 1
    path.write_bytes(data)
    assert "its directory breaks off" in refusal(path)


def test_one_part_of_several_says_how_to_join_them(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "x.zip", {"a.png": png()})
    data = bytearray(path.read_bytes())
    data[data.rindex(END) + 4] = 1  # number of this disk
    path.write_bytes(data)
    assert f"join them first (zip -s 0 {path} --out whole.zip)" in refusal(path)


@pytest.mark.parametrize("field", ["size", "compressed", "offset"])
def test_sizes_and_places_that_no_file_has_are_told(field: str, tmp_path: Path) -> None:
    path = make_zip(tmp_path / "x.zip", {"a.png": png()})
    data = bytearray(path.read_bytes())
    entry = data.rindex(b"PK\x01\x02")
    place = entry + {"compressed": 20, "size": 24, "offset": 42}[field]
    data[place : place + 4] = b"\xff" * 4  # Zip64's own field has it
    data[entry + 30 : entry + 32] = (12).to_bytes(2, "little")
    name_end = entry + 46 + len("a.png")
    data[name_end:name_end] = b"\1\0\x08\0" + (2**64 - 2).to_bytes(8, "little")
    size = data.rindex(END) + 12
    data[size : size + 4] = (int.from_bytes(data[size : size + 4], "little") + 12).to_bytes(
        4, "little"
    )
    path.write_bytes(data)
    assert "a.png" in refusal(path)
    assert "cannot be in it; fetch it again" in refusal(path)
