import io
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms, PngImagePlugin

from pipelines.images import CROPS, MAX_PIXELS, ImageError, decode_image


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def smooth(height: int, width: int) -> NDArray[np.uint8]:
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 / width, y * 255 / height, np.full_like(x, 90.0, float)], -1).astype(
        np.uint8
    )


@pytest.mark.parametrize("kind", ["PNG", "BMP"])
def test_lossless_formats_come_back_exactly(kind: str) -> None:
    pixels = smooth(9, 13)
    decoded = decode_image(saved(Image.fromarray(pixels), kind))
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, pixels)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "AVIF"])
def test_lossy_formats_come_back_nearly(kind: str) -> None:
    pixels = smooth(32, 48)
    decoded = decode_image(saved(Image.fromarray(pixels), kind, quality=95))
    assert np.abs(decoded.astype(int) - pixels).mean() < 3


def test_cmyk_jpeg_has_its_colours() -> None:
    red = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    assert np.abs(decode_image(saved(red, "JPEG")).reshape(-1, 3).mean(0) - (255, 0, 0)).max() < 8


def test_grey_becomes_three_equal_channels() -> None:
    grey = smooth(8, 8)[..., 0]
    np.testing.assert_array_equal(
        decode_image(saved(Image.fromarray(grey), "PNG")), np.repeat(grey[..., None], 3, -1)
    )


def test_16_bit_grey_is_scaled_not_clipped() -> None:
    levels = np.array([[0, 257, 1000, 40000, 65535]], np.uint16)
    decoded = decode_image(saved(Image.fromarray(levels), "PNG"))
    np.testing.assert_array_equal(decoded[0, :, 0], [0, 1, 4, 156, 255])


def test_transparency_is_laid_on_white() -> None:
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0, :, 3] = [0, 128, 255]
    np.testing.assert_array_equal(
        decode_image(saved(Image.fromarray(rgba), "PNG"))[0, :, 0], [255, 127, 0]
    )


def test_transparent_palette_entry_is_white_and_the_others_keep_their_colour() -> None:
    image = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    image.putpalette([10, 20, 30, 200, 100, 50])
    decoded = decode_image(saved(image, "PNG", transparency=0))
    np.testing.assert_array_equal(decoded, [[[255, 255, 255], [200, 100, 50]]])


def test_exif_rotation_is_applied() -> None:
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:, :16] = 255  # left half white
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned clockwise by 90 degrees: left becomes top
    decoded = decode_image(saved(Image.fromarray(pixels), "JPEG", exif=exif))
    assert decoded.shape == (32, 16, 3)
    assert decoded[:12].min() > 200
    assert decoded[20:].max() < 50


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_undone(orientation: int) -> None:
    pixels = smooth(6, 9)
    # As EXIF 2.3 defines them: which side of what is seen the rows and columns of what is stored
    # begin at.
    stored = {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.transpose(1, 0, 2),
        6: pixels.transpose(1, 0, 2)[::-1],
        7: pixels.transpose(1, 0, 2)[::-1, ::-1],
        8: pixels.transpose(1, 0, 2)[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    decoded = decode_image(saved(Image.fromarray(np.ascontiguousarray(stored)), "PNG", exif=exif))
    np.testing.assert_array_equal(decoded, pixels)


@pytest.mark.filterwarnings("ignore:.*EXIF:UserWarning", "ignore:Truncated File Read:UserWarning")
def test_no_damage_to_the_exif_costs_the_image() -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description" * 3
    data = saved(Image.fromarray(smooth(20, 30)), "JPEG", exif=exif)
    start = data.index(b"Exif\0\0") + 6
    length = int.from_bytes(data[start - 8 : start - 6], "big") - 8
    rng = np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(data)
        for place in rng.integers(start, start + length, 4):
            damaged[place] = rng.integers(0, 256)
        assert decode_image(bytes(damaged)).shape in ((20, 30, 3), (30, 20, 3))


def test_transparent_level_of_16_bit_grey_is_white() -> None:
    levels = np.array([[0, 1000, 40000]], np.uint16)
    data = saved(Image.fromarray(levels), "PNG")
    body = b"tRNS" + (1000).to_bytes(2, "big")
    chunk = (2).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")
    at = data.index(b"IDAT") - 4
    np.testing.assert_array_equal(
        decode_image(data[:at] + chunk + data[at:])[0, :, 0], [0, 255, 156]
    )


def test_16_bit_colour_is_within_a_level_of_the_scaled_one() -> None:
    levels = np.random.default_rng(0).integers(0, 65536, (40, 50, 3))
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in levels)

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            len(data).to_bytes(4, "big") + name + data + zlib.crc32(name + data).to_bytes(4, "big")
        )

    head = (50).to_bytes(4, "big") + (40).to_bytes(4, "big") + bytes([16, 2, 0, 0, 0])
    data = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )
    assert np.abs(decode_image(data) - levels / 257.0).max() <= 1


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9, 0.97])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_filled_up_with_zeros_is_refused(share: float, progressive: bool) -> None:
    data = saved(Image.fromarray(smooth(200, 200)), "JPEG", quality=95, progressive=progressive)
    kept = int(len(data) * share)
    for end in (bytes(len(data) - kept), bytes(10_000)):
        with pytest.raises(ImageError, match=r"zeros|truncated"):
            decode_image(data[:kept] + end)
    # behind its end
    np.testing.assert_array_equal(decode_image(data + bytes(10_000)), decode_image(data))


MP4 = b"\0\0\0\x18ftypmp42\0\0\0\0isommp42"  # a motion photo's video begins so


@pytest.mark.parametrize(
    "trailer",
    [
        bytes(3),
        MP4 + b"\0\0\x10\0free" + bytes(4088),
        b"VENDOR" + bytes(200),
        b"\xff" * 3 + bytes(200),
    ],
)
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 1}])
def test_whatever_is_behind_the_end_of_a_jpeg_is_not_looked_at(
    options: dict[str, int], trailer: bytes
) -> None:
    thumbnail = saved(Image.fromarray(smooth(16, 16)), "JPEG")
    exif = Image.Exif()
    exif[0x010E] = "a description"
    data = saved(
        Image.fromarray(smooth(200, 200)),
        "JPEG",
        quality=95,
        exif=exif.tobytes() + thumbnail,
        **options,
    )
    assert data.count(b"\xff\xd9") >= 2, "the thumbnail has an end of its own"
    np.testing.assert_array_equal(decode_image(data + trailer), decode_image(data))
    if len(trailer) > 64:
        for cut in (data[:-2], data[: len(data) // 2], data[: data.index(thumbnail) + 900]):
            with pytest.raises(ImageError, match=r"zeros|truncated"):
                decode_image(cut + trailer)


@pytest.mark.parametrize("kind", ["tEXt", "zTXt", "iTXt", "iCCP"])
def test_no_length_of_text_or_profile_costs_a_png(kind: str) -> None:
    pixels = smooth(8, 8)
    text = "x" * 1_500_000
    options: dict[str, object] = {}
    if kind == "iCCP":
        options["icc_profile"] = np.random.default_rng(0).bytes(1_500_000)
    else:
        info = PngImagePlugin.PngInfo()
        if kind == "iTXt":
            info.add_itxt("workflow", text, zip=True)
        else:
            info.add_text("workflow", text, zip=kind == "zTXt")
        options["pnginfo"] = info
    data = saved(Image.fromarray(pixels), "PNG", **options)
    assert kind.encode() in data
    np.testing.assert_array_equal(decode_image(data), pixels)


def test_a_png_whose_text_unpacks_without_end_is_refused() -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("bomb", "x" * (70 << 20), zip=True)
    data = saved(Image.fromarray(smooth(8, 8)), "PNG", pnginfo=info)
    assert len(data) < 1 << 20
    with pytest.raises(ImageError):
        decode_image(data)


def test_colour_profile_is_left_out_of_account() -> None:
    pixels = smooth(8, 8)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    decoded = decode_image(saved(Image.fromarray(pixels), "PNG", icc_profile=profile))
    np.testing.assert_array_equal(decoded, pixels)


def test_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    decoded = decode_image(saved(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    np.testing.assert_array_equal(decoded[0, 0], [255, 0, 0])


def _truncated(kind: str) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = saved(Image.fromarray(noise), kind)
    return data[: len(data) // 2]


@pytest.mark.parametrize(
    ("make", "reason", "exception"),
    [
        (lambda: b"", "empty file", "ImageError"),
        (
            lambda: b"This is a text, whatever its name says.",
            "not a readable JPEG",
            "UnidentifiedImageError",
        ),
        (lambda: b"\0" * 500, "not a readable JPEG", "UnidentifiedImageError"),
        (lambda: _truncated("JPEG"), "truncated", "OSError"),
        (lambda: _truncated("PNG"), "truncated", "OSError"),
        (
            lambda: saved(Image.new("RGB", (4, 4)), "TIFF"),
            "not a readable JPEG",
            "UnidentifiedImageError",
        ),
        (
            lambda: saved(Image.new("1", (10_000, 9_000)), "PNG"),
            f"more than the {MAX_PIXELS}",
            "ImageError",
        ),
    ],
)
@pytest.mark.filterwarnings("default::PIL.Image.DecompressionBombWarning")
def test_bad_images_are_refused_with_a_reason(
    make: Callable[[], bytes], reason: str, exception: str
) -> None:
    with pytest.raises(ImageError) as caught:
        decode_image(make())
    assert reason in caught.value.reason
    assert caught.value.exception == exception
    assert " at 0x" not in caught.value.reason
    assert "\n" not in caught.value.reason


def test_every_crop_gives_the_size_and_leaves_a_fitting_image_alone() -> None:
    for crop in CROPS.values():
        pixels = smooth(32, 32)
        np.testing.assert_array_equal(crop(pixels, 32), pixels)


@pytest.mark.parametrize("size", [(64, 64), (65, 200), (300, 90), (20, 33), (32, 32), (1, 1)])
def test_adm_crop_gives_the_size(size: tuple[int, int]) -> None:
    assert CROPS["adm"](smooth(*size), 32).shape == (32, 32, 3)


def test_adm_crop_halves_with_a_box_and_cuts_the_centre() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    halved = pixels.reshape(32, 2, 48, 2, 3).mean((1, 3))  # one halving, then no resizing
    cropped = CROPS["adm"](pixels, 32).astype(float)
    # PIL rounds after each of the two directions
    assert np.abs(cropped - halved[:, 8:40]).max() <= 1


def test_adm_crop_resizes_bicubically_between_powers_of_two() -> None:
    pixels = smooth(48, 60)
    expected = np.asarray(Image.fromarray(pixels).resize((40, 32), Image.Resampling.BICUBIC))[
        :, 4:36
    ]
    np.testing.assert_array_equal(CROPS["adm"](pixels, 32), expected)


def test_crop_refuses_what_would_need_a_giant_resize() -> None:
    with pytest.raises(ImageError, match="too elongated"):
        CROPS["adm"](np.zeros((2, 4000, 3), np.uint8), 2048)


def test_no_crop_refuses_another_size() -> None:
    with pytest.raises(ImageError, match="33x32 is not 32x32"):
        CROPS["none"](smooth(32, 33), 32)


def test_real_photographs_decode(shared_data: Path) -> None:
    files = sorted((shared_data / "imagenet_sample").rglob("*.JPEG"))[:20]
    for file in files:
        assert CROPS["adm"](decode_image(file.read_bytes()), 64).shape == (64, 64, 3)
