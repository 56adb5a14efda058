"""Memorisation: samples beside their nearest training images, as a picture."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from evaluation.features.imagesets import ImageSet
from evaluation.features.measure import Measured
from evaluation.metrics.neighbours import nearest
from evaluation.preview.sheet import Panel, sheet
from schemas.files import write_atomic
from schemas.png import encode_png

NEAREST = 5


def write_neighbours(
    out: Path, samples: tuple[ImageSet, Measured], training: tuple[ImageSet, Measured], num: int
) -> None:
    """A column a sample: the sample on top, its nearest training images by features below.

    The columns are those of the `num` samples that come nearest of all to a training image, the
    most suspicious first.

    Args:
        out: a PNG, written whole.
        samples: images, and their statistics with feature rows.
        training: the same of what the model was trained on.
        num: columns.
    """
    found, distances = nearest(samples[1].rows(), training[1].rows(), NEAREST)
    chosen = np.argsort(distances[:, 0], kind="stable")[:num]
    columns = [
        np.concatenate([_read(samples[0], [i]), _read(training[0], found[i].tolist())])
        for i in chosen.tolist()
    ]
    names = ["sample", *(f"nearest {k + 1}" for k in range(NEAREST))]
    block = Panel("samples and their nearest training images", tuple(np.stack(columns, axis=1)))
    write_atomic(out, encode_png(sheet([block], names)))


def _read(images: ImageSet, numbers: list[int]) -> NDArray[np.uint8]:
    return np.concatenate([images.read(number, number + 1).images for number in numbers])
