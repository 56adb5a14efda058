"""Pictures of a report: samples at every setting, images beside reconstructions."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from evaluation.draw.setting import Setting
from evaluation.features.imagesets import read_item
from evaluation.report.render import data_uri
from evaluation.report.tables import setting_text
from evaluation.results import Result, Sampling
from pipelines.dataset.finished import LatentDataset
from pipelines.encoders.decode import decode_records
from pipelines.grid import by_class, tile
from schemas.errors import UserError
from schemas.manifest import Manifest
from schemas.png import encode_png
from schemas.run import EVAL_DIR, SAMPLES_DIR, Run

MOST_CLASSES = 20  # of a grid; a page with a thousand rows shows nothing
COLUMNS = 10
PAIRS = 10
MOST_NEIGHBOURS = 2  # pictures


@dataclass(frozen=True)
class Picture:
    """An image file as a data URI, its size in its own pixels, and what it shows."""

    uri: str
    width: int
    height: int
    alt: str


@dataclass(frozen=True)
class Pairs:
    """Real images and their reconstructions; `note` says what is missing when `real` is None.

    Of a dataset of pixels there are no reconstructions.
    """

    real: Picture | None
    reconstructed: Picture | None
    note: str


def picture(rows: Sequence[NDArray[np.uint8]], alt: str) -> Picture:
    """A grid of images as one PNG."""
    canvas = tile(rows)
    return Picture(data_uri(encode_png(canvas), "image/png"), canvas.shape[1], canvas.shape[0], alt)


def class_rows(
    images: NDArray[np.uint8], labels: NDArray[np.int64], classes: Sequence[str], columns: int
) -> list[tuple[str, Picture]]:
    """(class name, strip of its first `columns` images) for the first classes."""
    rows = []
    for label in np.unique(labels)[:MOST_CLASSES]:
        strip = images[labels == label][:columns]
        rows.append(
            (classes[label], picture([strip], f"{len(strip)} samples of class {classes[label]}"))
        )
    return rows


def block(images: NDArray[np.uint8], labels: NDArray[np.int64], columns: int, alt: str) -> Picture:
    """A grid with one row a class, without names."""
    return picture(by_class(images, labels, columns)[:MOST_CLASSES], alt)


def stored_samples(
    workdir: Path, result: Result, num: int
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The first `num` samples of a result, decoded: (n, H, W, 3) and classes (n,).

    Raises:
        UserError: the sample set is gone or broken.
    """
    from evaluation.draw.setting import setting_name

    assert result.sampling is not None
    dataset = LatentDataset(workdir / SAMPLES_DIR / setting_name(result.sampling))
    records = list(dataset.records(stop=min(num, len(dataset))))
    shown = sorted({record.label for record in records})[:MOST_CLASSES]
    # decoding the others would take long
    records = [record for record in records if record.label in shown]
    return decode_records(dataset.manifest, records), np.array(
        [record.label for record in records], np.int64
    )


def fresh_samples(workdir: Path, run: Run) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Samples drawn now with the recipe's sampler, for a run that was never evaluated.

    Raises:
        UserError: no checkpoint.
    """
    from evaluation.draw.sample import images_and_labels
    from flowtrain.state.checkpoint import load_for_sampling

    classes = run.sampled_classes
    setting = Setting(len(classes) * COLUMNS, run.recipe.sampler.settings())
    numbers = np.arange(setting.num, dtype=np.int64)
    # the others would not be shown
    shown = np.isin(setting.labels(numbers, classes), classes[:MOST_CLASSES])
    numbers = numbers[shown]
    return images_and_labels(load_for_sampling(workdir), setting, 64, lambda count: None, numbers)


def reconstructions(dataset: LatentDataset) -> Pairs:
    """One record of each of the first classes, beside what the VAE makes of it."""
    manifest = dataset.manifest
    chosen: dict[int, int] = {}
    records = []
    for record in dataset.records(stop=min(len(dataset), 50 * PAIRS)):
        taken = chosen.get(record.label, 0)
        if taken < max(1, PAIRS // len(manifest.classes)) and len(records) < PAIRS:
            chosen[record.label] = taken + 1
            records.append(record)
    records.sort(key=lambda record: record.label)
    images = decode_records(dataset.manifest, records)
    if manifest.vae is None:
        return Pairs(picture([images], "images of the dataset"), None, "")
    decoded = picture([images], "the same images after encoding and decoding")
    originals = _originals(manifest, [record.key for record in records])
    if originals is None:
        return Pairs(
            None, decoded, f"The source {manifest.source.descriptor} is not reachable from here."
        )
    return Pairs(picture([originals], "images of the source"), decoded, "")


def neighbour_pictures(
    workdir: Path, series: Sequence[Result], first: Result
) -> list[tuple[str, Picture]]:
    """(setting, picture) of a series' `eval --neighbours`, with `first` at the top."""
    from PIL import Image

    found = []
    for result in (first, *(other for other in reversed(series) if other is not first)):
        assert result.sampling is not None
        path = _neighbour_file(workdir, result.sampling, result.protocol.name)
        if path is not None and len(found) < MOST_NEIGHBOURS:
            title, data = setting_text(result.sampling), path.read_bytes()
            with Image.open(io.BytesIO(data)) as image:
                width, height = image.size
            alt = f"samples of {title} and the training images nearest to them"
            found.append((title, Picture(data_uri(data, "image/png"), width, height, alt)))
    return found


def _neighbour_file(workdir: Path, sampling: Sampling, protocol: str) -> Path | None:
    """Of one setting's pictures, named after their numbers of samples, the largest."""
    from evaluation.draw.setting import setting_name

    name = f"neighbours-{setting_name(sampling)}-{protocol}-"
    files = {
        path.stem.removeprefix(name): path for path in (workdir / EVAL_DIR).glob(f"{name}*.png")
    }
    # others are of a protocol whose name begins alike
    counts = {int(count): path for count, path in files.items() if count.isdecimal()}
    return counts[max(counts)] if counts else None


def _originals(manifest: Manifest, keys: Sequence[str]) -> NDArray[np.uint8] | None:
    """Cropped source images by key; None when the source or an image is gone."""
    from pipelines.sources import open_source

    try:
        source = open_source(manifest.source.descriptor, manifest.source.split)
        items = {item.key: item for item in source.index()}
        found = [read_item(source, items[key], manifest.crop, manifest.resolution) for key in keys]
    except (UserError, OSError, KeyError):
        return None
    images = [picture.pixels for picture in found if picture is not None]
    return np.stack(images) if len(images) == len(keys) else None
