"""Pictures that Pillow reads, each row with the filter that leaves least."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from schemas.png import encode_png


def smooth(height: int, width: int) -> np.ndarray:
    """A photograph's likeness: what is near is alike, up to a little noise."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8))
    fine = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.float64)
    return (fine + rng.normal(0, 2, fine.shape)).clip(0, 255).astype(np.uint8)


def bands(kind: int) -> np.ndarray:
    """Random rows that one of the filters makes zeros of, but for what begins them."""
    rng = np.random.default_rng(kind)
    across = rng.integers(0, 256, (1, 40, 3), np.uint8)
    if kind == 1:
        return np.tile(rng.integers(0, 256, (30, 1, 3), np.uint8), (1, 40, 1))
    if kind == 2:
        return np.tile(across, (30, 1, 1))
    return np.zeros((30, 40, 3), np.uint8)


def filters(data: bytes) -> list[int]:
    """The filter of each row of a file, whose chunks are read by hand."""
    width, height = struct.unpack(">II", data[16:24])
    at, packed = 8, b""
    while at < len(data):
        (length,) = struct.unpack_from(">I", data, at)
        if data[at + 4 : at + 8] == b"IDAT":
            packed += data[at + 8 : at + 8 + length]
        at += 12 + length
    rows = np.frombuffer(zlib.decompress(packed), np.uint8).reshape(height, 1 + 3 * width)
    return rows[:, 0].tolist()


NOISE = np.random.default_rng(1).integers(0, 256, (200, 7, 3), np.uint8)


@pytest.mark.parametrize(
    "image",
    [NOISE, NOISE[:1, :1], NOISE[:, ::-2], smooth(130, 65), smooth(64, 64), bands(1), bands(2)],
    ids=["noise", "one pixel", "a view", "odd", "one block", "rows", "columns"],
)
def test_pillow_reads_the_same_pixels(image: np.ndarray) -> None:
    decoded = Image.open(io.BytesIO(encode_png(image)))
    assert (decoded.format, decoded.mode) == ("PNG", "RGB")
    np.testing.assert_array_equal(np.asarray(decoded), image)


def test_a_row_has_the_filter_that_leaves_least() -> None:
    assert set(filters(encode_png(NOISE))) == {0, 1, 2, 3, 4}
    assert filters(encode_png(bands(0))) == [0] * 30, "of equal ones the first"
    assert set(filters(encode_png(bands(1)))) == {1, 4}, "these differ in the first pixel"
    assert filters(encode_png(bands(2)))[1:] == [2] * 29


@pytest.mark.parametrize("image", [NOISE, smooth(300, 200), bands(2)])
def test_files_are_at_most_a_quarter_larger_than_pillows(image: np.ndarray) -> None:
    peer = io.BytesIO()
    Image.fromarray(image).save(peer, "PNG", optimize=True)
    assert len(encode_png(image)) <= 1.25 * len(peer.getvalue()) + 20


@pytest.mark.parametrize(
    "image",
    [NOISE[..., :1], NOISE[0], NOISE.astype(np.float32), NOISE[:0]],
    ids=["grey", "flat", "float", "empty"],
)
def test_what_is_no_picture_is_refused(image: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"a picture is \(H, W, 3\) uint8, not"):
        encode_png(image)
