"""Statistics of images: what `stats` writes, and `eval` keeps of its samples and references."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from evaluation.extractors import PUBLISHED, Weights, cache
from evaluation.features import range_files
from evaluation.features.imagesets import ImageSet, batch_images, dataset_images, source_images
from evaluation.features.rows import read_rows
from evaluation.metrics.neighbours import Manifold
from evaluation.progress import MakeBar
from evaluation.protocols import EvaluationProtocol, Recipe, read_protocol
from evaluation.results import reference_of
from pipelines.preprocess.thresholds import MAX_BAD_FRACTION
from pipelines.runners.beam_noise import quiet_log
from schemas.arrays import array_names
from schemas.errors import UserError
from schemas.locked import locked
from schemas.manifest import MANIFEST_NAME
from schemas.statistics import FeatureStatistics, read_statistics

_MANIFOLDS: dict[tuple[str, int], Manifold] = {}


class Measured(NamedTuple):
    """Statistics, and the file they are in, beside which their feature rows may lie."""

    statistics: FeatureStatistics
    file: Path

    def rows(self) -> NDArray[np.float32]:
        """(n, dim). Raises `UserError` when they were not kept."""
        return read_rows(self.file, self.statistics)

    def manifold(self, k: int) -> Manifold:
        """The balls around the rows to their k-th neighbours, worked out once a process."""
        rows = self.rows()
        key = str(self.statistics.protocol["features"]["sha256"]), k
        if key not in _MANIFOLDS:
            _MANIFOLDS[key] = Manifold.of(rows, k)
        return _MANIFOLDS[key]


@dataclass(frozen=True)
class MeasureOptions:
    """How images are measured: Beam options, bar, weights, whether rows are kept, and how many of
    the images may be unreadable.
    """

    beam_args: tuple[str, ...] = ()
    make_bar: MakeBar | None = None
    weights: Weights = PUBLISHED
    keep_features: bool = False
    max_bad_fraction: float = MAX_BAD_FRACTION


DEFAULTS = MeasureOptions()


def protocol_of(
    recipe: Recipe, resolution: int, weights: Weights | None = None
) -> EvaluationProtocol:
    """The protocol with this machine's weights; raises `UserError` without them."""
    extractor = cache.extractor(recipe.extractor, recipe.prepare, weights or PUBLISHED)
    return EvaluationProtocol.resolve(recipe, extractor, resolution)


def measure_images(
    images: ImageSet, protocol: EvaluationProtocol, out: Path, options: MeasureOptions = DEFAULTS
) -> Measured:
    """Statistics of `images`, measured into `out` anew; one command at a time.

    Raises:
        UserError: an image set that changed, has fewer than two readable images or too many
            unreadable ones; a broken shard; no room at `out`.
    """
    with _alone_at(out):
        return _measure_images(images, protocol, out, options)


@contextlib.contextmanager
def _alone_at(out: Path) -> Iterator[None]:
    """Wait for other commands that make the same file."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(out.with_name(f".{out.name}.lock")))
        except OSError as error:
            raise UserError(range_files.unwritable(out, error)) from error
        yield


def _measure_images(
    images: ImageSet, protocol: EvaluationProtocol, out: Path, options: MeasureOptions
) -> Measured:
    with quiet_log():
        from evaluation.features import pipeline

    config = pipeline.Config(
        images=images,
        protocol=protocol,
        out=str(out.absolute()),
        keep_features=options.keep_features,
        weights=options.weights,
        max_bad_fraction=options.max_bad_fraction,
    )
    bar = (
        options.make_bar(total=images.size, desc="measure", unit="image")
        if options.make_bar
        else None
    )
    try:
        return Measured(pipeline.run(config, options.beam_args, bar), out)
    finally:
        if bar is not None:
            bar.close()


def kept_statistics(
    images: ImageSet, protocol: EvaluationProtocol, out: Path, options: MeasureOptions = DEFAULTS
) -> Measured:
    """As `measure_images`, but read from `out` if it holds the same; own files only.

    Raises:
        UserError: as `measure_images`.
    """
    with _alone_at(out):  # other commands may want the same
        with contextlib.suppress(UserError):  # missing or damaged: measured again
            found = Measured(read_statistics(out), out)
            if options.keep_features:
                found.rows()
            facts = image_facts(found.statistics)
            same_protocol = read_protocol(found.statistics.protocol) == protocol
            if same_protocol and facts.items() >= images.facts().items():
                return found
        return _measure_images(images, protocol, out, options)


def check_out(out: Path) -> None:
    """Before any work: only statistics, whole or damaged, may be replaced by statistics.

    Raises:
        UserError: something else lies at `out`.
    """
    if out.is_dir() or (out.is_file() and not _is_replaceable(out)):
        raise UserError(
            f"{out}: is there and is not feature statistics; give another name, or delete it"
        )


def _is_replaceable(path: Path) -> bool:
    try:
        names = array_names(path)
        return {"mu", "sigma"} <= {*names} and "arr_0" not in names  # ADM's hold images
    except ValueError:  # damaged, if it is empty or begins as an .npz does
        with open(path, "rb") as file:
            return file.read(2) in (b"", b"PK")


def image_facts(statistics: FeatureStatistics) -> dict[str, Any]:
    """Of which images the statistics are, and how many: `ImageSet.facts`, as the file says them."""
    return dict(statistics.protocol.get("images", {}))


def is_dataset(path: Path) -> bool:
    """Whether a directory is a dataset, perhaps an unfinished one, which reading it will tell."""
    return (path / MANIFEST_NAME).is_file() or any(path.glob("*.array_record*"))


def named_images(
    source: str, split: str | None, resolution: int | None, crop: str, num: int | None
) -> ImageSet:
    """The images of what a person named: a dataset directory, or a source of images.

    Raises:
        UserError: nothing usable there, or a resolution that is missing or is not the dataset's.
    """
    path = Path(source)
    if path.is_file():
        return batch_images(path, num)
    if is_dataset(path):
        images = dataset_images(path, split, num)
        if resolution not in (None, images.resolution):
            raise UserError(
                f"{source}: a dataset of {images.resolution} pixels, not {resolution}; leave "
                "--resolution out"
            )
        return images
    if resolution is None:
        raise UserError(
            f"{source}: say at which --resolution to measure it, the one of the samples it is for"
        )
    return source_images(source, split or "train", resolution, crop, num)


def summary(statistics: FeatureStatistics, out: Path) -> dict[str, Any]:
    """What `stats` tells of its result."""
    protocol = read_protocol(statistics.protocol)
    assert protocol is not None, "written here, so its protocol is in it"
    return {
        "out": str(out),
        "digest": reference_of(statistics).digest,
        "protocol": protocol.model_dump(),
        "images": image_facts(statistics),
    }


def describe(summary: dict[str, Any]) -> str:
    """The same on one line."""
    images, protocol = summary["images"], summary["protocol"]
    rejected = f", {images['rejected']} unreadable" if images["rejected"] else ""
    correct = images["correct"]
    scored = "" if correct is None else f", {correct / images['n']:.1%} classified as labelled"
    return (
        f"{summary['out']}: {images['n']} images of {protocol['resolution']} pixels{rejected}, "
        f"{protocol['dim']} features ({protocol['extractor']}){scored}"
    )
