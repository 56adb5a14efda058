"""What is said of a source at the end of its name."""

import io
import tarfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from pipelines.images import ImageError
from pipelines.sources import open_source
from pipelines.sources.options import SourceOptions, split_options, with_options
from tests.pipelines.sources.miniature import add
from tests.pipelines.sources.prepared import make_parquet, make_zip
from tests.refusals import refused


@pytest.mark.parametrize(
    "options",
    [
        SourceOptions(),
        SourceOptions(classes="none"),
        SourceOptions(image="img", label="fine label&#=é"),
        SourceOptions(exif="ignore", min_side=256),
    ],
)
def test_a_name_and_its_options_come_apart_again(options: SourceOptions):
    assert split_options(f"parquet:/a#b/c{options.suffix}") == ("parquet:/a#b/c", options)


def test_options_of_a_command_go_before_those_of_the_name():
    typed = SourceOptions(classes="none", image="other")
    name = with_options("parquet:x#image=one&label=two", typed)
    assert split_options(name) == ("parquet:x", SourceOptions("none", "other", "two"))
    assert with_options("folder", SourceOptions()) == "folder"


def test_a_number_sign_in_a_path_is_no_option(tmp_path):
    (tmp_path / "a#b").mkdir()
    assert open_source(str(tmp_path / "a#b"), "train").descriptor == str(tmp_path / "a#b")


def test_what_means_nothing_is_refused(tmp_path):
    told = refused(lambda: open_source(f"{tmp_path}#image=img", "train"))
    assert told == f"{tmp_path}: --image-column says nothing about such a source"
    told = refused(lambda: open_source("embedded:digits#classes=none", "train"))
    assert told == "embedded:digits: --classes says nothing about such a source"
    for end in ("classes=some", "exif=no", "min_side=-1", "min_side=1e9", "image=a&other=b"):
        assert f"#{end} is not understood" in refused(lambda end=end: split_options(f"x#{end}"))


def _turned(side: int) -> bytes:
    """A JPEG of side x 2 side pixels, left half black, that its EXIF turns by a quarter."""
    image = Image.new("RGB", (2 * side, side), "white")
    image.paste((0, 0, 0), (0, 0, side, side))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    file = io.BytesIO()
    image.save(file, "jpeg", exif=exif)
    return file.getvalue()


def _pack(root: Path, files: dict[str, bytes], kind: str) -> str:
    """A source of these files."""
    if kind == "zip":
        return f"zip:{make_zip(root / 'x.zip', files)}"
    if kind == "parquet":
        make_parquet(root / "x.parquet", list(files.values()))
        return f"parquet:{root / 'x.parquet'}"
    if kind == "folder":
        for name, data in files.items():
            (root / name).write_bytes(data)
        return str(root)
    with tarfile.open(root / "x.tar", "w") as archive:
        for name, data in files.items():
            add(archive, name, data)
    return f"{kind}:{root / 'x.tar'}"


@pytest.mark.parametrize("kind", ["folder", "zip", "tar", "parquet", "wds"])
def test_exif_and_small_images_in_every_source(tmp_path: Path, kind: str):
    """Pixels are those of Pillow without and with `exif_transpose`."""
    files = {"small.jpg": _turned(8), "large.jpg": _turned(16)}
    place = _pack(tmp_path, files, kind)
    stored = {name: np.asarray(Image.open(io.BytesIO(data))) for name, data in files.items()}
    seen = {name: np.rot90(pixels, -1) for name, pixels in stored.items()}
    for options, expected in (("", seen), ("#exif=ignore", stored)):
        source = open_source(place + options, "train")
        found = [source.read(item).pixels for item in source.index()]
        shapes = sorted(pixels.shape for pixels in found)
        assert shapes == sorted(pixels.shape for pixels in expected.values())
        for pixels in found:
            same = [other for other in expected.values() if other.shape == pixels.shape]
            np.testing.assert_array_equal(pixels, same[0])
    source = open_source(f"{place}#min_side=9", "train")
    reasons = []
    for item in source.index():
        with suppress(ImageError):
            assert min(source.read(item).pixels.shape[:2]) == 16
            continue
        reasons.append(item.key)
    assert len(reasons) == 1
