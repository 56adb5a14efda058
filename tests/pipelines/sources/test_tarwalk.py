"""A tar by its headers: the members that Python's tarfile finds, and never a part for the whole."""

import bz2
import gzip
import lzma
import tarfile
from pathlib import Path

import numpy as np
import pytest

from pipelines.sources.ranges import RangeFile
from pipelines.sources.tarwalk import walk
from tests.pipelines.sources.miniature import SYNSETS, Miniature, add
from tests.refusals import refused

NAMES = ("cat/1.png", f"cat/{'long' * 60}.png", "żółw/日本.png", "empty.png")


def walked(path: Path) -> list[tarfile.TarInfo]:
    with RangeFile(str(path)) as file:
        return list(walk(file, str(path)))


def refusal(path: Path) -> str:
    line = refused(lambda: walked(path))
    assert line.startswith(f"{path}: ")
    return line


def make_tar(path: Path, count: int) -> bytes:
    with tarfile.open(path, "w") as archive:
        for number in range(count):
            add(archive, f"cat/{number}.png", b"x" * 70)
    return path.read_bytes()


@pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_those_of_tarfile(kind: int, tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    contents = {name: bytes([number]) * 700 * number for number, name in enumerate(NAMES, 1)}
    contents["empty.png"] = b""
    with tarfile.open(path, "w", format=kind) as archive:
        for name, data in contents.items():
            add(archive, name, data)
        add(archive, "folder", b"", type=tarfile.DIRTYPE)
        add(archive, "link.png", b"", type=tarfile.SYMTYPE, linkname="cat/1.png")
    with tarfile.open(path) as archive:
        expected = [(m.name, m.size, m.offset_data, m.type) for m in archive]
    members = walked(path)
    assert [(m.name, m.size, m.offset_data, m.type) for m in members] == expected
    data = path.read_bytes()
    found = {m.name: data[m.offset_data : m.offset_data + m.size] for m in members if m.isreg()}
    assert found == contents


def test_a_cut_archive_never_passes_for_a_whole_one(miniature: Miniature, tmp_path: Path) -> None:
    whole = miniature.train.read_bytes()
    with tarfile.open(miniature.train) as archive:
        members = archive.getmembers()
    last = members[-1]
    end = last.offset_data + -(-last.size // 512) * 512
    path = tmp_path / "cut.tar"
    cuts = {
        last.offset,
        last.offset + 100,
        last.offset + 512,
        last.offset_data + 700,
        end - 100,
        end,
        end + 300,
    }
    cuts |= {members[3].offset, members[3].offset_data + 512 * 3, 100, 512, 1000}
    cuts |= set(np.random.default_rng(0).integers(1, end + 512, 60).tolist())
    for cut in cuts:
        path.write_bytes(whole[:cut])
        assert "fetch it again" in refusal(path)
    path.write_bytes(whole[: end + 512])  # one zero block is the mark; filling up is a habit
    assert len(walked(path)) == SYNSETS
    path.write_bytes(whole[: last.offset_data + 700])
    assert refusal(path).startswith(
        f"{path}: cut short: it ends at byte {last.offset_data + 700}, and {last.name} in it"
    )


def test_hole_in_a_download_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    whole = make_tar(path, 3000)
    path.write_bytes(whole[: 512 * 1000] + bytes(len(whole) - 512 * 1000))
    assert "damaged or not fully downloaded" in refusal(path)


def test_damaged_header_is_not_the_end(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    data = bytearray(make_tar(path, 3))
    data[1024 + 5] ^= 1
    path.write_bytes(data)
    assert "no header at byte 1024" in refusal(path)


def test_more_behind_the_end_is_told(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(make_tar(path, 2) * 2)
    assert "more follows after its end at byte 2048" in refusal(path)


@pytest.mark.parametrize(
    ("pack", "tool"),
    [(gzip.compress, "gunzip"), (bz2.compress, "bunzip2"), (lzma.compress, "unxz")],
)
def test_a_compressed_tar_is_named_with_what_unpacks_it(
    pack: object, tool: str, tmp_path: Path
) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(pack(make_tar(path, 1)))  # type: ignore[operator]
    assert refusal(path).endswith(f"unpack it with {tool}")
