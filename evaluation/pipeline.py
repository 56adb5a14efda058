"""The evaluation pipeline: images of any origin -> features -> sums -> statistics, on any Beam runner."""

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
from numpy.typing import NDArray

from evaluation import models
from evaluation.imagesets import ImageSet
from evaluation.progress import Bar, tick, watched
from evaluation.protocols import EvaluationProtocol
from pipelines.runner import run_pipeline
from schemas.errors import UserError
from schemas.statistics import FeatureStatistics, Moments, read_statistics, write_statistics

# A sum is 34 MB at 2048 features: few ranges keep memory independent of the number of images.
MOST_RANGES = 16
FEWEST_IMAGES = 256
FOLD = 512  # rows summed at a time; also the images held at once


@dataclass(frozen=True)
class Config:
    """One set of images measured under one protocol, written to `out` (.npz)."""

    images: ImageSet
    protocol: EvaluationProtocol
    out: str


@dataclass(frozen=True)
class Range:
    """Images [start, stop); `index` orders the ranges."""

    index: int
    start: int
    stop: int


@dataclass(frozen=True)
class Sums:
    """What is known of a range: feature moments, images classified as labelled, and images that cannot be read.

    `failure` is what the user can mend; it travels in the element, since runners wrap what a worker raises.
    """

    index: int
    moments: Moments
    correct: int
    rejected: int
    failure: str | None = None


def cut(size: int, most: int = MOST_RANGES, fewest: int = FEWEST_IMAGES) -> list[Range]:
    """Cut [0, size) into at most `most` ranges of at least `fewest`; a function of the size alone."""
    count = max(1, min(most, size // fewest))
    bounds = [size * i // count for i in range(count + 1)]
    return [Range(i, bounds[i], bounds[i + 1]) for i in range(count)]


def measure(part: Range, config: Config) -> Sums:
    """Read, decode and featurise one range, in order. Models are loaded here, on first use in the process."""
    try:
        return _measure(part, config)
    except UserError as error:
        return Sums(part.index, Moments.zero(config.protocol.dim), 0, 0, failure=str(error))


def _measure(part: Range, config: Config) -> Sums:
    extractor = models.extractor(config.protocol.extractor)
    if extractor.digest != config.protocol.extractor_digest:
        raise UserError(f"extractor {extractor.name}: a worker has other weights than the protocol says")
    names = np.array(extractor.class_names)
    moments, correct, rejected = Moments.zero(config.protocol.dim), 0, 0
    for start in range(part.start, part.stop, FOLD):
        batch = config.images.read(start, min(start + FOLD, part.stop))
        rejected += batch.rejected
        if len(batch.images):
            features, logits = extractor(batch.images)
            moments += Moments.of(features)
            correct += _correct(logits, names, np.array(config.images.classes)[batch.labels])
        tick(progress_folder(config), part.index, moments.n + rejected)
    return Sums(part.index, moments, correct, rejected)


def _correct(logits: NDArray[np.float32], names: NDArray[np.str_], labels: NDArray[np.str_]) -> int:
    return int((names[logits.argmax(axis=-1)] == labels).sum())


class InOrder(beam.CombineFn):
    """Collects the sums of all ranges; adding them in order of their index makes the result independent of timing."""

    def create_accumulator(self) -> list[Sums]:
        return []

    def add_input(self, mutable_accumulator: list[Sums], element: Sums) -> list[Sums]:
        return [*mutable_accumulator, element]

    def merge_accumulators(self, accumulators: Iterable[list[Sums]]) -> list[Sums]:
        return [sums for accumulator in accumulators for sums in accumulator]

    def extract_output(self, accumulator: list[Sums]) -> list[Sums]:
        return sorted(accumulator, key=lambda sums: sums.index)


def finish(sums: Sequence[Sums], config: Config) -> str:
    """Add the sums up and write the statistics, or leave word why not in `failure_path`.

    Raises:
        RuntimeError: a range is missing or doubled (a fault of the runner).
    """
    ranges = cut(config.images.size)
    if [each.index for each in sums] != [each.index for each in ranges]:
        raise RuntimeError(f"got ranges {[each.index for each in sums]} of {len(ranges)}")
    failures = [each.failure for each in sums if each.failure is not None]
    if failures:
        return _fail(config, failures[0])
    moments = functools.reduce(Moments.__add__, (each.moments for each in sums))
    correct, rejected = sum(each.correct for each in sums), sum(each.rejected for each in sums)
    if moments.n + rejected != config.images.size:
        raise RuntimeError(f"{moments.n} features and {rejected} rejects of {config.images.size} images")
    if moments.n < 2:
        return _fail(config, f"{moments.n} readable images ({rejected} unreadable): statistics need at least 2")
    statistics = FeatureStatistics.from_moments(moments, protocol_facts(config, moments.n, correct, rejected))
    write_statistics(Path(config.out), statistics)
    return config.out


def progress_folder(config: Config) -> str:
    """Where ranges say how far they are, while somebody watches."""
    return f"{config.out}.progress"


def failure_path(config: Config) -> Path:
    """Where a run says what the user can mend."""
    return Path(f"{config.out}.failure")


def _fail(config: Config, message: str) -> str:
    failure_path(config).write_text(message)
    return ""


def protocol_facts(config: Config, n: int, correct: int, rejected: int) -> dict[str, Any]:
    """What is written beside the moments: the protocol, and under `images` what was measured."""
    known = set(config.images.classes) <= set(models.extractor(config.protocol.extractor).class_names)
    images = {**config.images.facts(), "n": n, "rejected": rejected, "correct": correct if known else None}
    return {**config.protocol.model_dump(), "images": images}


def define_pipeline(root: beam.Pipeline, config: Config) -> None:
    """The whole graph; linear, one element a range."""
    _ = (
        root
        | "Ranges" >> beam.Create(cut(config.images.size))
        | "Spread" >> beam.Reshuffle()
        | "Measure" >> beam.Map(measure, config)
        | "InOrder" >> beam.CombineGlobally(InOrder())
        | "Write" >> beam.Map(finish, config)
    )


def run(config: Config, beam_args: Sequence[str] = (), bar: Bar | None = None) -> FeatureStatistics:
    """Run the pipeline and read what it wrote; `bar` is moved by images.

    Raises:
        UserError: an image set that cannot be read, or fewer than two readable images.
    """
    failure_path(config).unlink(missing_ok=True)
    with watched(progress_folder(config), bar):
        run_pipeline(functools.partial(define_pipeline, config=config), beam_args)
    if failure_path(config).is_file():
        message = failure_path(config).read_text()
        failure_path(config).unlink()
        raise UserError(message)
    return read_statistics(Path(config.out))
