import os
import pickle
import stat
import struct
import tracemalloc
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipelines.images import ImageError, decode_image
from pipelines.sources import Item, Source, open_source
from schemas.errors import UserError
from tests.pipelines.sources.miniature import jpeg, png
from tests.pipelines.sources.prepared import make_zip
from tests.refusals import refused


def opened(*paths: Path) -> Source:
    return open_source("zip:" + ",".join(map(str, paths)), "train")


def refusal(path: Path) -> str:
    return refused(lambda: list(opened(path).index()))


def by_key(source: Source) -> dict[str, Item]:
    return {item.key: item for item in source.index()}


def reason(source: Source, item: Item) -> str:
    with pytest.raises(ImageError) as caught:
        source.read(item)
    return caught.value.reason


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_members_equal_what_zipfile_reads(method: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    contents = {f"data/{name}/{n} żółw.jpg": jpeg(rng) for n in range(4) for name in ("cat", "dog")}
    path = make_zip(
        tmp_path / "x.zip",
        {**contents, "__MACOSX/data/cat/._0.jpg": b"x", "data/readme.txt": b"x"},
        method,
    )
    source = pickle.loads(pickle.dumps(opened(path)))
    assert source.classes == ("cat", "dog")
    items = by_key(source)
    assert {f"data/{key}" for key in items} == contents.keys()
    for key, item in items.items():
        assert source.classes[item.label] == key.split("/")[0]
        np.testing.assert_array_equal(
            source.read(item).pixels, decode_image(contents[f"data/{key}"])
        )


def test_flat_zip_is_one_class(tmp_path: Path) -> None:
    source = opened(
        make_zip(tmp_path / "x.zip", {"CelebA-HQ/1.png": png(), "CelebA-HQ/2.png": png()})
    )
    assert len(source.classes) == 1
    source = opened(make_zip(tmp_path / "y.zip", {"1.png": png(), "2.png": png()}))
    assert source.classes == ("all",)


def test_really_beyond_four_gigabytes(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.png", png("red"))
        with archive.open(zipfile.ZipInfo("big.bin"), "w", force_zip64=True) as file:
            file.write(b"x")
        assert archive.fp is not None
        archive.fp.seek(5 << 30)  # a hole: no room is taken on the disk
        archive.start_dir = archive.fp.tell()
        archive.writestr("z.png", png("blue"))
    source = opened(path)
    items = by_key(source)
    assert items.keys() == {"a.png", "z.png"}
    np.testing.assert_array_equal(source.read(items["z.png"]).pixels[0, 0], [0, 0, 255])


def test_local_header_longer_than_the_directory_tells(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "x.zip", {"a.png": png("blue", (300, 300))})
    data = bytearray(path.read_bytes())
    data[28:30] = struct.pack("<H", 1000)
    data[35:35] = bytes(1000)  # behind the name
    end = data.rindex(b"PK\x05\x06")
    data[end + 16 : end + 20] = struct.pack(
        "<L", struct.unpack_from("<L", data, end + 16)[0] + 1000
    )
    path.write_bytes(data)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
    source = opened(path)
    np.testing.assert_array_equal(source.read(next(source.index())).pixels[0, 0], [0, 0, 255])


def test_giant_file_is_rejected_unread(tmp_path: Path) -> None:
    source = opened(make_zip(tmp_path / "x.zip", {"a.png": png()}))
    item = replace(next(source.index()), size=2**30, location="nowhere")
    assert "more than the 536870912 allowed" in reason(source, item)


def test_damaged_member_is_rejected(tmp_path: Path) -> None:
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        path = make_zip(tmp_path / "x.zip", {"a.bmp": os.urandom(500), "b.png": png()}, method)
        data = bytearray(path.read_bytes())
        data[300] ^= 1
        path.write_bytes(data)
        source = opened(path)
        items = by_key(source)
        assert "damaged: " in reason(source, items["a.bmp"])
        assert source.read(items["b.png"]).pixels.shape == (4, 4, 3)


def test_deflate_bomb_is_not_unpacked(tmp_path: Path) -> None:
    path = make_zip(
        tmp_path / "x.zip", {"a.bmp": bytes(50 << 20), "b.png": png()}, zipfile.ZIP_DEFLATED
    )
    data = bytearray(path.read_bytes())
    at = data.index(b"PK\x01\x02")
    data[at + 24 : at + 28] = struct.pack("<L", 1000)  # the directory promises less
    path.write_bytes(data)
    source = opened(path)
    item = by_key(source)["a.bmp"]
    tracemalloc.start()
    assert "CRC-32" in reason(source, item)
    assert tracemalloc.get_traced_memory()[1] < 10 << 20
    tracemalloc.stop()


def test_members_that_cannot_be_used_are_rejected_with_a_reason(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("cat/good.png", png())
        archive.writestr("../evil.png", png())
        archive.writestr("/etc/evil.png", png())
        link = zipfile.ZipInfo("cat/link.png")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "good.png")
        archive.writestr("cat/lzma.png", png(), zipfile.ZIP_LZMA)
        archive.writestr("cat/secret.png", png())
        archive.writestr("dog/", "")
    data = bytearray(path.read_bytes())
    at = data.rindex(b"cat/secret.png") - 46
    data[at + 8] |= 1
    path.write_bytes(data)
    source = opened(path)
    assert source.classes == ("cat", "dog")
    items = by_key(source)
    assert source.read(items.pop("cat/good.png")).pixels.shape == (4, 4, 3)
    assert {key: reason(source, item) for key, item in items.items()} == {
        "../evil.png": "its name leads out of the archive",
        "/etc/evil.png": "its name leads out of the archive",
        "cat/link.png": "a symbolic link, not a file",
        "cat/lzma.png": (
            "compressed by method 14 of zip; only stored (0) and deflated (8) members can be read"
        ),
        "cat/secret.png": "encrypted; unpack the zip with its password",
        "dog/": "a class folder with no image in it",
    }


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_members_with_one_name_are_listed_twice(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("a.png", png())
        archive.writestr("a.png", png("blue"))
    assert [item.key for item in opened(tmp_path / "x.zip").index()] == ["a.png", "a.png"]


def test_what_is_no_zip_is_told(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    for data, what in (
        (b"", "an empty file"),
        (b"text", "not a zip"),
        (os.urandom(3000), "not a zip"),
    ):
        path.write_bytes(data)
        assert what in refusal(path)
    make_zip(path, {})
    assert "no image file in it" in refusal(path)
    with pytest.raises(UserError, match="no zip given"):
        open_source("zip:", "train")
