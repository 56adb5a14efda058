"""The whole list of bad input through `flowtrain preprocess`: what is encoded, what is rejected,
and why.
"""

import io
import json
import os
import shutil
import struct
import tarfile
import unicodedata
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image, ImageCms

from flowtrain.cli import main
from pipelines.dataset.finished import LatentDataset
from tests.pipelines.running import run
from tests.pipelines.sources.miniature import add, jpeg, png

SIDE = 16
ORANGE = (250, 128, 40)


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def solid(mode: str, colour: object, size: tuple[int, int] = (24, 20)) -> Image.Image:
    return Image.new(mode, size, colour)  # pyright: ignore[reportArgumentType]


def png16(kind: int, values: tuple[int, ...]) -> bytes:
    """A 16-bit PNG of one colour, by hand: PIL writes only grey ones. Colour type 0, 2, 4 or 6."""
    rows = (b"\0" + struct.pack(f">{len(values)}H", *values) * 24) * 20

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">L", len(data)) + name + data + struct.pack(">L", zlib.crc32(name + data))
        )

    head = struct.pack(">2L5B", 24, 20, 16, kind, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def cmyk(ycck: bool) -> bytes:
    """Orange as Adobe's programs write it: all four channels inverted, with or without luma and
    chroma.
    """
    inverted = np.full((20, 24, 3), 255 - np.array(ORANGE), np.uint8)
    # libjpeg takes the first three of YCCK for a YCbCr image of 255 - CMY.
    first = np.asarray(Image.fromarray(inverted).convert("YCbCr")) if ycck else 255 - inverted
    stored = np.concatenate([first, np.full((20, 24, 1), 255, np.uint8)], axis=-1)
    data = bytearray(
        saved(Image.frombytes("CMYK", (24, 20), (255 - stored).tobytes()), "JPEG", quality=95)
    )
    data[data.index(b"Adobe") + 11] = 2 if ycck else 0
    return bytes(data)


def rotated() -> bytes:
    """Left half orange once it is turned clockwise, as its EXIF says."""
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[8:] = ORANGE
    exif = Image.Exif()
    exif[0x0112] = 6
    return saved(Image.fromarray(pixels), "JPEG", exif=exif, quality=95, subsampling=0)


def broken_exif() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = saved(solid("RGB", ORANGE), "JPEG", exif=exif, quality=95)
    return data.replace(b"Exif\0\0MM", b"Exif\0\0??").replace(b"Exif\0\0II", b"Exif\0\0??")


def palette() -> bytes:
    image = solid("P", 0)
    image.putpalette([1, 2, 3, *ORANGE])
    image.paste(1, (0, 0, 12, 20))
    return saved(image, "PNG", transparency=0)


def animation(kind: str) -> bytes:
    frames = [solid("RGB", colour) for colour in (ORANGE, "blue", "green")]
    return saved(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)


def profiled() -> bytes:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    return saved(solid("RGB", ORANGE), "PNG", icc_profile=profile)


def half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def photograph(kind: str) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8)
    return saved(Image.fromarray(noise), kind)


# Name -> (bytes, colour of the left of the stored image | part of the reason why it is rejected).
FILES: dict[str, tuple[Callable[[], bytes], tuple[int, int, int] | str]] = {
    "whole.jpg": (lambda: saved(solid("RGB", ORANGE), "JPEG", quality=95), ORANGE),
    "truncated.jpg": (lambda: half(photograph("JPEG")), "image file is truncated"),
    "truncated-progressive.jpg": (
        lambda: half(saved(solid("RGB", "red", (400, 400)), "JPEG", progressive=True)),
        "image file is truncated",
    ),
    "truncated.png": (lambda: half(photograph("PNG")), "image file is truncated"),
    "truncated.webp": (lambda: half(photograph("WEBP")), "cannot be decoded"),
    "filled-up.jpg": (lambda: half(photograph("JPEG")) + bytes(2000), "its end is zeros"),
    "damaged.png": (
        lambda: photograph("PNG")[:200] + b"?" + photograph("PNG")[201:],
        "cannot be decoded",
    ),
    "empty.jpg": (lambda: b"", "empty file"),
    "zeros.jpg": (lambda: bytes(500), "not a readable JPEG, PNG"),
    "text.jpg": (lambda: b"Not an image, whatever its name says.\n", "not a readable JPEG, PNG"),
    "page.jpg": (lambda: b"<!DOCTYPE html><html>404</html>", "not a readable JPEG, PNG"),
    "vector.png": (
        lambda: b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "not a readable JPEG, PNG",
    ),
    "tagged.tif": (lambda: saved(solid("RGB", ORANGE), "TIFF"), "not a readable JPEG, PNG"),
    "really-png.jpg": (lambda: png(ORANGE, (24, 20)), ORANGE),
    "cmyk.jpg": (lambda: cmyk(ycck=False), ORANGE),
    "ycck.jpg": (lambda: cmyk(ycck=True), ORANGE),
    "grey.jpg": (lambda: saved(solid("L", 90), "JPEG"), (90, 90, 90)),
    "bilevel.png": (lambda: saved(solid("1", 1), "PNG"), (255, 255, 255)),
    "grey16.png": (lambda: png16(0, (40_000,)), (156, 156, 156)),
    "rgb16.png": (lambda: png16(2, tuple(257 * level for level in ORANGE)), ORANGE),
    "rgba16.png": (lambda: png16(6, (*(257 * level for level in ORANGE), 65_535)), ORANGE),
    "grey-alpha16.png": (lambda: png16(4, (40_000, 65_535)), (156, 156, 156)),
    "grey-alpha.png": (lambda: saved(solid("LA", (0, 128)), "PNG"), (127, 127, 127)),
    "transparent.png": (lambda: saved(solid("RGBA", (*ORANGE, 0)), "PNG"), (255, 255, 255)),
    "palette.png": (palette, ORANGE),
    "animated.gif": (lambda: animation("GIF"), ORANGE),
    "animated.webp": (lambda: animation("WEBP"), ORANGE),
    "animated.png": (lambda: animation("PNG"), ORANGE),
    "turned.jpg": (rotated, ORANGE),
    "broken-exif.jpg": (broken_exif, ORANGE),
    "profile.png": (profiled, ORANGE),
    "one-pixel.png": (lambda: png(ORANGE, (1, 1)), ORANGE),
    "20000-wide.png": (lambda: png(ORANGE, (20_000, 12)), ORANGE),
    "20000-wide-one-high.png": (lambda: png(ORANGE, (20_000, 1)), ORANGE),
    "bomb.png": (
        lambda: saved(solid("1", 0, (10_000, 9_000)), "PNG"),
        "pixels are more than the 89478485 allowed",
    ),
    "larger-bomb.png": (
        lambda: saved(solid("1", 0, (30_000, 20_000)), "PNG"),
        "are more than the 89478485 allowed",
    ),
    unicodedata.normalize("NFC", "Žluťoučký kůň 日本.jpg"): (
        lambda: saved(solid("RGB", ORANGE), "JPEG"),
        ORANGE,
    ),
    unicodedata.normalize("NFD", "Žluťoučký kůň 日本.jpg"): (
        lambda: saved(solid("RGB", ORANGE), "JPEG"),
        ORANGE,
    ),
}
EMPTY = ("empty-class/", "a class folder with no image in it")
GOOD = 5


@pytest.fixture(scope="module")
def contents() -> dict[str, bytes]:
    rng = np.random.default_rng(0)
    good = {f"good/{number}.jpg": jpeg(rng) for number in range(GOOD)}
    return {**{f"bad/{name}": make() for name, (make, _) in FILES.items()}, **good}


def check(source: str, out: Path, rejected: dict[str, str]) -> None:
    """Every row of the table, and the further rejects of this kind of source."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        done = run(
            source,
            out,
            "--resolution",
            SIDE,
            "--vae",
            "none",
            "--max-bad-fraction",
            1,
            "--shards",
            2,
            "--json",
        )
    assert done.exit_code == 0, done.output
    records = {record.key: record for record in LatentDataset(out).records()}
    rejects = {
        row["key"]: row for row in map(json.loads, (out / "rejects.jsonl").read_text().splitlines())
    }
    expected = dict(rejected)
    for name, (_, outcome) in FILES.items():
        if isinstance(outcome, str):
            expected[f"bad/{name}"] = outcome
            continue
        left = (
            records.pop(f"bad/{name}")
            .tensors["image"][2 : SIDE // 2 - 2, 2 : SIDE // 2 - 2]
            .astype(int)
        )
        assert np.abs(left - outcome).max() <= 6, (name, left[0, 0])
    assert len(records) == GOOD
    assert rejects.keys() == expected.keys()
    for key, reason in expected.items():
        assert reason in rejects[key]["reason"], key
    facts = json.loads(done.stdout)
    assert facts["rejected"] == len(expected)
    assert facts["records"] + facts["rejected"] == len(FILES) + GOOD + len(rejected)


def test_in_a_folder(contents: dict[str, bytes], tmp_path: Path) -> None:
    folder = tmp_path / "in"
    for name, data in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    (folder / "empty-class").mkdir()
    (folder / "good/round").symlink_to(folder)
    (folder / "bad/nothing.jpg").symlink_to(folder / "nothing")
    (folder / "bad/itself.jpg").symlink_to(folder / "bad/itself.jpg")
    os.mkfifo(folder / "bad/pipe.jpg")
    rejected = {
        "bad/nothing.jpg": "a symbolic link to nothing",
        "bad/itself.jpg": "a symbolic link that leads back to itself",
        "bad/pipe.jpg": "a device, pipe or socket, not a file",
    }
    check(str(folder), tmp_path / "out", {**rejected, EMPTY[0]: EMPTY[1]})


def test_in_a_tar(contents: dict[str, bytes], tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "in.tar", "w") as archive:
        for name, data in contents.items():
            add(archive, name, data)
        add(archive, "empty-class", b"", type=tarfile.DIRTYPE)
        add(archive, "../../evil.png", png())
        add(archive, "/evil.png", png())
        add(archive, "bad/link.png", b"", type=tarfile.SYMTYPE, linkname="/etc/passwd")
        add(archive, "bad/hard.png", b"", type=tarfile.LNKTYPE, linkname="good/0.jpg")
    rejected = {
        "../../evil.png": "its name leads out of the archive",
        "/evil.png": "its name leads out of the archive",
        "bad/link.png": "a symbolic link, not a file",
        "bad/hard.png": "a link to another member, not a file",
    }
    check(f"tar:{tmp_path / 'in.tar'}", tmp_path / "out", {**rejected, EMPTY[0]: EMPTY[1]})


def test_in_a_zip(contents: dict[str, bytes], tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "in.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in contents.items():
            archive.writestr(name, data)
        archive.writestr("empty-class/", b"")
        archive.writestr("../evil.png", png())
        archive.writestr("bad/bzip2.png", png(), zipfile.ZIP_BZIP2)
    rejected = {
        "../evil.png": "its name leads out of the archive",
        "bad/bzip2.png": "compressed by method 12 of zip",
    }
    check(f"zip:{tmp_path / 'in.zip'}", tmp_path / "out", {**rejected, EMPTY[0]: EMPTY[1]})


def test_two_entries_with_one_key_are_one_record_and_counted(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "in.tar", "w") as archive:
        for name in ("same.png", "same.png", "./same.png", "other.png"):
            add(archive, name, png("red"))
    done = run(
        f"tar:{tmp_path / 'in.tar'}", tmp_path / "out", "--resolution", 4, "--vae", "none", "--json"
    )
    facts = json.loads(done.stdout)
    assert (facts["records"], facts["rejected"], facts["duplicates"]) == (2, 0, 2)
    assert sorted(record.key for record in LatentDataset(tmp_path / "out").records()) == [
        "other.png",
        "same.png",
    ]


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_other_images_of_one_name_are_refused_and_never_dropped(kind: str, tmp_path: Path) -> None:
    archives = []
    for name, colour in (("cats", "red"), ("dogs", "blue")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.png").write_bytes(png(colour))
        (tmp_path / name / f"{name}.png").write_bytes(png(colour))
        archives.append(shutil.make_archive(str(tmp_path / name), kind, tmp_path / name))
    for command, *options in (("preprocess", "--vae", "none"), ("stats",)):
        words = [command, f"{kind}:{','.join(archives)}", str(tmp_path / "out"), *options]
        done = CliRunner().invoke(main, [*words, "--resolution", "4"], catch_exceptions=False)
        assert done.exit_code == 2
        assert "two images are called 0.png and are not the same; a record's key is" in done.stderr
        assert done.stderr.count("\n") == 1
        assert not (tmp_path / "out").exists()


def test_a_tar_cut_in_the_middle_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "in.tar", "w") as archive:
        for number in range(40):
            add(archive, f"cat/{number}.png", png())
    whole = (tmp_path / "in.tar").read_bytes()
    (tmp_path / "in.tar").write_bytes(whole[: len(whole) // 2])
    done = run(f"tar:{tmp_path / 'in.tar'}", tmp_path / "out", "--resolution", 4, "--vae", "none")
    assert done.exit_code == 2
    assert "in.tar: cut short: it ends at byte" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()
