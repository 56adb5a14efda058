"""From the bytes of an image file to square uint8 RGB pixels, or to a reason why not.

Decoding follows what a person sees: EXIF rotation is applied, 16-bit grey is scaled (not clipped),
transparency is laid on white, of an animation the first frame counts. Colour profiles are left out
of account, as ADM, DiT and SiT do. Damaged files are refused: half an image is not an image.
"""

import io
import math
import re
import warnings
from collections.abc import Callable

import numpy as np
from jaxtyping import UInt8
from numpy.typing import NDArray

# By name, so that a decoder that is not there fails here, and not as a bad image each time one is
# met.
from PIL import (
    AvifImagePlugin,  # noqa: F401
    BmpImagePlugin,  # noqa: F401
    ExifTags,
    GifImagePlugin,  # noqa: F401
    Image,
    JpegImagePlugin,  # noqa: F401
    PngImagePlugin,
    WebPImagePlugin,  # noqa: F401
)

# PIL warns of a decompression bomb above this many pixels (a quarter GiB of RGB); here such an
# image is refused.
MAX_PIXELS = 2**28 // 3
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
# Of text and of the colour profile in a PNG, which are not looked at: as much as all of them
# together may have, where Pillow refuses an image for 1 MB in one of them.
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "AVIF")
SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".avif"})

# Markers of a JPEG, by the byte after 0xff.
_JPEG_BEGINS = b"\xff\xd8"
_END, _SCAN, _FILL = 0xD9, 0xDA, 0xFF
_ALONE = frozenset({0x01, *range(0xD0, 0xD8)})  # without a length: TEM, and restarts in a scan
_ZEROS = 64  # so many zeros in a row do not end a JPEG that is whole
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ADDRESS = re.compile(r"\s*<[^>]* at 0x[0-9a-fA-F]+>")


class ImageError(Exception):
    """An unusable image: `reason` is one line without addresses, `exception` a class's name."""

    def __init__(self, reason: str, exception: str = "ImageError"):
        super().__init__(reason)
        self.reason = reason
        self.exception = exception

    def __reduce__(self) -> tuple[type["ImageError"], tuple[str, str]]:
        return type(self), (self.reason, self.exception)


def decode_image(data: bytes, *, turn: bool = True) -> UInt8[np.ndarray, "H W 3"]:
    """Decode a JPEG, PNG, WebP, BMP, GIF or AVIF file: bytes -> (H, W, 3) uint8 RGB.

    Args:
        data: the whole file.
        turn: the image as its EXIF says. ADM, DiT, SiT and EDM2 leave it as it is stored.

    Raises:
        ImageError: empty, of another format, damaged, truncated, or too large.
    """
    if not data:
        raise ImageError("empty file")
    if _is_filled_up(data):
        raise ImageError("cut short: its end is zeros, as a broken download leaves it")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ImageError(_too_large(f"{image.width}x{image.height}"))
            image.load()
            return np.asarray(_to_rgb(_upright(image) if turn else image))
    except (ImageError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(_too_large("its")) from error
    except Image.UnidentifiedImageError as error:
        raise ImageError(
            f"not a readable {', '.join(FORMATS)} image", type(error).__name__
        ) from error
    except Exception as error:  # PIL's plugins let through whatever their parsers stumble on
        raise ImageError(f"cannot be decoded: {_one_line(error)}", type(error).__name__) from error


def _too_large(size: str) -> str:
    return f"{size} pixels are more than the {MAX_PIXELS} allowed"


def _is_filled_up(data: bytes) -> bool:
    """Whether a JPEG ends in zeros, which its decoder shows as grey, in place of its end marker.

    Zeros behind the end are somebody's: a motion photo's video, a maker's trailer, a full block.
    """
    zeros = data.endswith(bytes(_ZEROS)) and data.startswith(_JPEG_BEGINS)
    return zeros and not _has_end(data)


def _has_end(data: bytes) -> bool:
    """Whether a JPEG has an end marker where one can be: between segments, or after a scan's
    coefficients (ITU-T T.81, annex B). The thumbnail in an EXIF segment has one of its own.
    """
    place = len(_JPEG_BEGINS)
    while data[place : place + 1] == b"\xff":
        marker = data[place + 1]
        if marker == _FILL:
            place += 1
        elif marker == _END:
            return True
        elif marker in _ALONE:
            place += 2
        else:
            place += 2 + int.from_bytes(data[place + 2 : place + 4])
            if marker == _SCAN:
                place = _after_coefficients(data, place)
    return False


def _after_coefficients(data: bytes, place: int) -> int:
    """Where the next marker is that is none of a scan's own; the end of the data without one."""
    while True:
        place = data.find(b"\xff", place)
        if place < 0 or place + 1 >= len(data):
            return len(data)
        if data[place + 1] != 0 and data[place + 1] not in _ALONE:
            return place
        place += 2


def _upright(image: Image.Image) -> Image.Image:
    """The image turned as its EXIF says; unreadable EXIF counts as none, as in image viewers."""
    try:
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # PIL's parser lets through whatever it stumbles on, and the pixels are good
        turn = None
    return image if turn is None else image.transpose(turn)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey; `convert` would clip it at 255
        levels = np.asarray(image).clip(0, 65535)
        grey = np.rint(levels / 257.0).astype(np.uint8)
        if "transparency" in image.info:  # the level that is to be seen through
            grey[levels == image.info["transparency"]] = 255
        return Image.fromarray(grey).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _one_line(error: Exception) -> str:
    # PIL puts object addresses into some texts, and the text is stored: it must be the same in
    # every run.
    return _ADDRESS.sub("", " ".join(str(error).split())) or "no further reason given"


def adm_crop(image: UInt8[np.ndarray, "H W 3"], size: int) -> UInt8[np.ndarray, "{size} {size} 3"]:
    """The centre crop of ADM (Dhariwal & Nichol 2021), as DiT, SiT and EDM2 use it.

    Halve with a box filter while the shorter side is at least twice `size`, resize bicubically
    until the shorter side is `size`, cut out the centre.

    Args:
        image: (H, W, 3).
        size: side of the result in pixels.

    Returns:
        (size, size, 3).

    Raises:
        ImageError: so elongated that resizing it would take more than `MAX_PIXELS`.
    """
    height, width = image.shape[:2]
    picture = Image.fromarray(image)
    while min(picture.size) >= 2 * size:
        picture = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BOX)
    scale = size / min(picture.size)
    target = round(picture.width * scale), round(picture.height * scale)
    if math.prod(target) > MAX_PIXELS:
        raise ImageError(f"{width}x{height} is too elongated to be resized to {size} pixels")
    picture = picture.resize(target, Image.Resampling.BICUBIC)
    left, top = (picture.width - size) // 2, (picture.height - size) // 2
    return np.asarray(picture)[top : top + size, left : left + size]


def no_crop(image: UInt8[np.ndarray, "H W 3"], size: int) -> UInt8[np.ndarray, "{size} {size} 3"]:
    """The image as it is: (size, size, 3) in and out.

    Raises:
        ImageError: it has another size.
    """
    height, width = image.shape[:2]
    if (height, width) != (size, size):
        raise ImageError(f"{width}x{height} is not {size}x{size}, and the crop rule is none")
    return image


CROPS: dict[str, Callable[[NDArray[np.uint8], int], NDArray[np.uint8]]] = {
    "adm": adm_crop,
    "none": no_crop,
}
