"""PNG files of grids, previews and TensorBoard's pictures, by NumPy and zlib alone: a trainer
machine has no Pillow. (Plots are matplotlib's.)

The format is ISO/IEC 15948 (PNG, second edition): 8-bit RGB. Files are at most a quarter larger
than Pillow's with `optimize=True`.
"""

import struct
import zlib

import numpy as np
from numpy.typing import NDArray

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_BLOCK = 64  # rows that are filtered at once: they stay in a processor's cache


def encode_png(image: NDArray[np.uint8]) -> bytes:
    """Encode (H, W, 3) uint8 RGB as a PNG file; the same pixels always give the same bytes.

    Raises:
        ValueError: another shape or type, or no pixels.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
        raise ValueError(f"a picture is (H, W, 3) uint8, not {image.dtype}{image.shape}")
    height, width, _ = image.shape
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = (b"IHDR", header), (b"IDAT", _compressed(image)), (b"IEND", b"")
    return _SIGNATURE + b"".join(_chunk(kind, data) for kind, data in parts)


def _chunk(kind: bytes, data: bytes) -> bytes:
    checksum = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)


def _compressed(image: NDArray[np.uint8]) -> bytes:
    # Level 9 takes up to twenty times as long, which the training loop would wait for, and saves a
    # sixth of the bytes.
    compressor = zlib.compressobj(
        level=6, memLevel=9, wbits=zlib.MAX_WBITS, strategy=zlib.Z_FILTERED
    )
    padded = np.pad(image, ((1, 0), (1, 0), (0, 0)))  # beyond the edge lie zeros
    data = [
        compressor.compress(_filtered(padded[start : start + _BLOCK + 1]).tobytes())
        for start in range(0, len(image), _BLOCK)
    ]
    return b"".join([*data, compressor.flush()])


def _filtered(padded: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Rows (n, 1 + 3 W) as they are compressed, of n + 1 rows of W + 1 pixels.

    Each row is told from its left and upper neighbours by one of the five filters of clause 9.2,
    the one whose differences have the least sum of magnitudes (clause 12.8), and begins with the
    number of that filter.
    """
    rows = len(padded) - 1
    values = padded.astype(np.int16)
    here, left, up, corner = (
        part.reshape(rows, -1)
        for part in (values[1:, 1:], values[1:, :-1], values[:-1, 1:], values[:-1, :-1])
    )
    predictions = (0, left, up, (left + up) >> 1, _paeth(left, up, corner))
    candidates = [(here - prediction).astype(np.uint8) for prediction in predictions]
    magnitudes = [
        np.abs(found.view(np.int8)).view(np.uint8).sum(axis=1, dtype=np.int64)
        for found in candidates
    ]
    best = np.argmin(magnitudes, axis=0)
    chosen = np.stack(candidates)[best, np.arange(rows)]
    return np.concatenate([best[:, None].astype(np.uint8), chosen], axis=1)


def _paeth(
    left: NDArray[np.int16], up: NDArray[np.int16], corner: NDArray[np.int16]
) -> NDArray[np.int16]:
    """Whichever of the three neighbours is nearest to left + up - corner (clause 9.4)."""
    from_left, from_up = np.abs(up - corner), np.abs(left - corner)
    from_corner = np.abs(left + up - 2 * corner)
    is_left = (from_left <= from_up) & (from_left <= from_corner)
    is_up = ~is_left & (from_up <= from_corner)
    return np.select([is_left, is_up], [left, up], corner)
