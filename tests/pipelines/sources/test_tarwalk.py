"""A tar by its headers: the members that Python's tarfile finds, and never a part for the whole."""

import bz2
import gzip
import lzma
import tarfile
import time
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


def header(kind: bytes, size: int, name: str = "cat/1.png") -> bytes:
    """A header by hand, of any size, negative ones included."""
    info = tarfile.TarInfo(name)
    info.type = kind
    data = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    data[124:136] = size.to_bytes(12, "big", signed=True)  # base 256
    data[124] |= 0x80
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data)
    return bytes(data)


def extension(kind: bytes, content: bytes) -> bytes:
    return header(kind, len(content)) + content.ljust(-(-len(content) // 512) * 512, b"\0")


def attribute(name: bytes, value: bytes) -> bytes:
    body = b" " + name + b"=" + value + b"\n"
    length = len(body) + len(str(len(body)))
    return b"%d" % (len(body) + len(str(length))) + body


def attributes(*pairs: tuple[bytes, bytes], kind: bytes = tarfile.XHDTYPE) -> bytes:
    return extension(kind, b"".join(attribute(*pair) for pair in pairs))


MEMBER = header(tarfile.REGTYPE, 5) + b"pixel".ljust(512, b"\0")
HOSTILE = {
    "negative size": header(tarfile.REGTYPE, -1024),
    "negative size of an attribute": attributes((b"size", b"-1024")) + MEMBER,
    "larger than stored": attributes((b"GNU.sparse.size", b"9" * 20)) + MEMBER,
    "huge long name": header(tarfile.GNUTYPE_LONGNAME, 2**62) + MEMBER,
    "huge attributes": header(tarfile.XHDTYPE, 2**62) + MEMBER,
    "negative attributes": header(tarfile.XHDTYPE, -512) + MEMBER,
    "long name of a MB": extension(tarfile.GNUTYPE_LONGNAME, b"x" * 2**20) + MEMBER,
    "chained": extension(tarfile.GNUTYPE_LONGNAME, b"x") * 5000 + MEMBER,
    "chained attributes": attributes((b"path", b"x")) * 400 + MEMBER,
    # Python 3.11.9 and earlier look for digits from each digit on
    "digits": attributes((b"comment", b"1" * 200_000)) + MEMBER,
    "no length": extension(tarfile.XHDTYPE, b"0" * 4000 + b"1 " + b"x" * 200_000 + b"=") + MEMBER,
    "global attributes": b"".join(
        attributes((b"a%d" % number, b"1"), kind=tarfile.XGLTYPE) for number in range(1100)
    ),
    "sparse without end": extension(tarfile.GNUTYPE_SPARSE, b"")[:482] + b"\1" + bytes(29),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_headers_that_no_program_writes_are_refused_at_once(name: str, tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    for before in (b"", MEMBER):
        path.write_bytes(before + HOSTILE[name] * 3 + bytes(1024))
        started = time.monotonic()
        assert "fetch it again" in refusal(path)
        assert time.monotonic() - started < 5


def test_attributes_as_programs_write_them_are_read(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    pairs = [
        (b"path", "żółw.png".encode()),
        (b"SCHILY.xattr.user.x", b"0123456789" * 20),
        (b"size", b"5"),
    ]
    path.write_bytes(
        attributes((b"comment", b"1" * 40), kind=tarfile.XGLTYPE)
        + extension(tarfile.GNUTYPE_LONGLINK, b"x" * 4096)
        + attributes(*pairs, (b"SCHILY.xattr.user.y", bytes(range(1, 256)) * 250))
        + MEMBER
        + bytes(1024)
    )
    (member,) = walked(path)
    assert (member.name, member.size) == ("żółw.png", 5)
