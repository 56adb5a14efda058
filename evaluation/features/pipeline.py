"""The evaluation pipeline on Beam: images of any origin -> features -> sums -> statistics.

Workers leave the sums of their ranges in files beside the result, which all of them must see; the
last step adds up.
"""

import functools
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np
from numpy.typing import NDArray

from evaluation.extractors import PUBLISHED, Extractor, Weights, cache
from evaluation.features import range_files, rows
from evaluation.features.imagesets import ImageSet
from evaluation.features.sums import Sums, read_sums, write_sums
from evaluation.metrics.inception_score import (
    Splits,
    add_splits,
    consecutive_splits,
    shuffled_splits,
    split_sums,
)
from evaluation.progress import Bar, tick, watched
from evaluation.protocols import EvaluationProtocol
from pipelines.dataset.build import identity_key, made_once
from pipelines.preprocess.thresholds import MAX_BAD_FRACTION
from pipelines.runners.runner import run_pipeline
from schemas.errors import UserError
from schemas.statistics import (
    FeatureStatistics,
    Gaussian,
    Moments,
    ScoreSplits,
    read_statistics,
    write_statistics,
)
from schemas.versions import installed_version

# Each leaves a file of 34 MB at 2048 features, or 67 MB with sFID's.
MOST_RANGES = 16
FEWEST_IMAGES = 256
FOLD = 512  # rows summed at a time; also the images held at once
_ROOM = 4096  # bytes kept for saying what failed, on a disk that may be full then


@dataclass(frozen=True)
class Config:
    """One set of images measured under one protocol, written to `out` (.npz).

    `keep_features` also writes every feature row (`evaluation.features.rows`); `weights` says where
    the extractor's are. Of unreadable images at most `max_bad_fraction` is passed over.
    """

    images: ImageSet
    protocol: EvaluationProtocol
    out: str
    keep_features: bool = False
    weights: Weights = PUBLISHED
    max_bad_fraction: float = MAX_BAD_FRACTION


@dataclass(frozen=True)
class Range:
    """Images [start, stop); `index` orders the ranges."""

    index: int
    start: int
    stop: int


class Outcome(NamedTuple):
    """How a range ended: with its sums in a file, or with a `failure` that the user can mend.

    The failure travels in the element, since runners wrap what a worker raises.
    """

    index: int
    failure: str | None = None


def cut(size: int, most: int = MOST_RANGES, fewest: int = FEWEST_IMAGES) -> list[Range]:
    """[0, size) as at most `most` ranges of at least `fewest`, by the size alone."""
    count = max(1, min(most, size // fewest))
    bounds = [size * i // count for i in range(count + 1)]
    return [Range(i, bounds[i], bounds[i + 1]) for i in range(count)]


def measure(range_: Range, config: Config) -> Outcome:
    """Read, decode and featurise one range, in order, unless a run that was killed has done so.

    Models are loaded here, on first use in the process.
    """
    whole = functools.partial(_measured, range_, config)
    try:
        made_once(whole, functools.partial(_measure_and_write, range_, config))
    except UserError as error:
        return Outcome(range_.index, str(error))
    except OSError as error:
        where = range_files.root(Path(config.out))
        if not str(error.filename or where).startswith(str(where)):
            raise
        return Outcome(range_.index, range_files.unwritable(where, error))
    return Outcome(range_.index)


def _measured(range_: Range, config: Config) -> Sums | None:
    """The sums of a range whose files are there, without unreadable images, which may be mended."""
    out, key = Path(config.out), parts_key(config)
    sums = read_sums(range_files.sums_path(out, key, range_.index), measured_of(config))
    if sums is None or sums.rejected:
        return None
    shape = sums.moments.n, config.protocol.dim
    if config.keep_features and not rows.range_is_whole(out, key, range_.index, shape):
        return None
    tick(progress_folder(config), range_.index, range_.stop - range_.start)
    return sums


def _measure_and_write(range_: Range, config: Config) -> Sums:
    """The sums are written last: with them the range is done."""
    sums = _measure(range_, config)
    path = range_files.sums_path(Path(config.out), parts_key(config), range_.index)
    write_sums(path, sums, measured_of(config))
    return sums


def measured_of(config: Config) -> dict[str, Any]:
    """All that the files of a range depend on."""
    return {
        "images": config.images.facts(),
        "state": config.images.state(),
        "protocol": config.protocol.model_dump(),
        "ranges": len(cut(config.images.size)),
        "rows": config.keep_features,
        "versions": {package: installed_version(package) for package in ("flowtrain", "jax")},
    }


def parts_key(config: Config) -> str:
    """The same, as the name of a folder."""
    return identity_key(json.dumps(measured_of(config), sort_keys=True))


def extractor_of(protocol: EvaluationProtocol, weights: Weights) -> Extractor:
    """The network of a protocol, with the weights that the protocol says.

    Raises:
        UserError: its weights cannot be had, or are others here.
    """
    extractor = cache.extractor(protocol.extractor, protocol.prepare, weights)
    another_last_layer = protocol.splits != "none" and extractor.last_layer != protocol.last_layer
    if extractor.digest != protocol.extractor_digest or another_last_layer:
        raise UserError(
            f"extractor {extractor.name}: a worker has other weights than the protocol says"
        )
    return extractor


def _measure(range_: Range, config: Config) -> Sums:
    protocol, images = config.protocol, config.images
    extractor = extractor_of(protocol, config.weights)
    names = np.array(extractor.class_names)
    split_of = SPLITS[protocol.splits](images.size)
    moments = Moments.zero(protocol.dim)
    spatial = Moments.zero(extractor.spatial_dim if protocol.spatial else 0)
    labels = np.zeros(len(images.classes), np.int64)
    scores: Splits = {}
    correct = rejected = 0
    with rows.writer(
        Path(config.out), parts_key(config), range_.index, keep=config.keep_features
    ) as keep:
        for start in range(range_.start, range_.stop, FOLD):
            stop = min(start + FOLD, range_.stop)
            batch = images.read(start, stop)
            rejected += batch.rejected
            if len(batch.images):
                found = extractor(batch.images)
                if not np.isfinite(found.features).all():
                    raise UserError(
                        f"images {start} to {stop - 1} give features that are not finite; look at "
                        "them"
                    )
                keep(found.features)
                moments += Moments.of(found.features)
                if protocol.spatial and found.spatial is not None:
                    spatial += Moments.of(found.spatial)
                # Of a source with unreadable images later ones may fall into the split before.
                if len(split_of):
                    chosen = split_of[start : start + len(found.logits)]
                    scores = add_splits(scores, split_sums(found.logits, chosen))
                correct += _correct(found.logits, names, np.array(images.classes)[batch.labels])
                labels += np.bincount(batch.labels, minlength=len(labels))
            tick(progress_folder(config), range_.index, moments.n + rejected)
    return Sums(moments, labels, correct, rejected, spatial if protocol.spatial else None, scores)


SPLITS = {
    "none": lambda n: np.zeros(0, np.int64),
    "consecutive": consecutive_splits,
    "shuffled": lambda n: shuffled_splits(n) if n >= 10 else np.zeros(0, np.int64),
}


def _correct(logits: NDArray[np.float32], names: NDArray[np.str_], labels: NDArray[np.str_]) -> int:
    if not len(names):
        return 0
    return int((names[logits.argmax(axis=-1)] == labels).sum())


class InOrder(beam.CombineFn):
    """Collects the ranges by index, so that sums do not depend on timing."""

    def create_accumulator(self) -> list[Outcome]:
        return []

    def add_input(self, mutable_accumulator: list[Outcome], element: Outcome) -> list[Outcome]:
        return [*mutable_accumulator, element]

    def merge_accumulators(self, accumulators: Iterable[list[Outcome]]) -> list[Outcome]:
        return [done for accumulator in accumulators for done in accumulator]

    def extract_output(self, accumulator: list[Outcome]) -> list[Outcome]:
        return sorted(accumulator, key=lambda done: done.index)


def finish(done: Sequence[Outcome], config: Config) -> str:
    """Add the sums up and write the statistics, or leave word why not in `failure_path`.

    Raises:
        RuntimeError: a range is missing or doubled (a fault of the runner).
    """
    try:
        return _finish(done, config)
    except OSError as error:
        return _fail(config, range_files.unwritable(Path(config.out), error))


def _finish(done: Sequence[Outcome], config: Config) -> str:
    ranges = cut(config.images.size)
    indices = [each.index for each in done]
    if indices != [range_.index for range_ in ranges]:
        raise RuntimeError(f"got ranges {indices} of {len(ranges)}")
    failures = [each.failure for each in done if each.failure is not None]
    if failures:
        return _fail(config, failures[0])
    sums = _total(ranges, config)
    if sums is None:
        where = range_files.root(Path(config.out))
        return _fail(config, f"{where}: something else wrote or deleted there; repeat the command")
    n = sums.moments.n
    if n + sums.rejected != config.images.size:
        raise RuntimeError(
            f"{n} features and {sums.rejected} rejects of {config.images.size} images"
        )
    too_few = _too_few(n, sums.rejected, config)
    if too_few is not None:
        return _fail(config, too_few)
    facts = protocol_facts(config, n, sums.correct, sums.rejected)
    if config.keep_features:
        facts["features"] = rows.assemble(
            Path(config.out), parts_key(config), len(ranges), (n, config.protocol.dim)
        )
    spatial = sums.spatial and Gaussian(sums.spatial.mean(), sums.spatial.cov())
    statistics = FeatureStatistics.from_moments(
        sums.moments,
        facts,
        spatial=spatial,
        scores=_scores(sums),
        labels=sums.labels,
        classes=config.images.classes,
    )
    write_statistics(Path(config.out), statistics)
    return config.out


def _too_few(n: int, rejected: int, config: Config) -> str | None:
    """Why no statistics are made of so many readable and unreadable images; None where they are."""
    if n < 2:
        return f"{n} readable images ({rejected} unreadable): statistics need at least 2"
    if rejected > config.max_bad_fraction * config.images.size:
        return (
            f"{rejected} of {config.images.size} images cannot be read, more than "
            f"--max-bad-fraction {config.max_bad_fraction:g}; mend them, or allow more"
        )
    return None


def _total(ranges: Sequence[Range], config: Config) -> Sums | None:
    """The sums of all ranges, added in their order; None where a file of sums is not as written."""
    out, key, origin = Path(config.out), parts_key(config), measured_of(config)
    total: Sums | None = None
    for range_ in ranges:  # one file at a time: they are large
        sums = read_sums(range_files.sums_path(out, key, range_.index), origin)
        if sums is None:
            return None
        total = sums if total is None else total + sums
    assert total is not None, "there is a range, if of no image"
    return total


def _scores(sums: Sums) -> ScoreSplits | None:
    ordered = [sums.scores[number] for number in sorted(sums.scores)]
    if not ordered:
        return None
    return ScoreSplits(
        np.array([split.n for split in ordered]),
        np.array([split.plogp for split in ordered]),
        np.stack([split.p for split in ordered]),
    )


def progress_folder(config: Config) -> str:
    """Where ranges say how far they are, while somebody watches."""
    return f"{config.out}.progress"


def failure_path(config: Config) -> Path:
    """Where a run says what the user can mend."""
    return Path(f"{config.out}.failure")


def _fail(config: Config, message: str) -> str:
    path = failure_path(config)
    # in the room that `run` kept for it
    with open(path, "r+b" if path.is_file() else "wb") as file:
        file.write(message.encode())
        file.truncate()
    return ""


def protocol_facts(config: Config, n: int, correct: int, rejected: int) -> dict[str, Any]:
    """What is written beside the moments: the protocol, and under `images` what was measured."""
    names = extractor_of(config.protocol, config.weights).class_names
    known = bool(names) and set(config.images.classes) <= set(names)
    images = {
        **config.images.facts(),
        "n": n,
        "rejected": rejected,
        "correct": correct if known else None,
    }
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
        UserError: an image set that cannot be read, fewer than two readable images, or more
            unreadable ones than are allowed.
    """
    out, failure = Path(config.out), failure_path(config)
    range_files.keep_only(out, parts_key(config))
    try:
        failure.write_text(" " * _ROOM)
    except OSError as error:
        raise UserError(range_files.unwritable(out, error)) from error
    try:
        with watched(progress_folder(config), bar):
            run_pipeline(functools.partial(define_pipeline, config=config), beam_args)
        message = failure.read_text().strip()
    finally:
        failure.unlink(missing_ok=True)
    if message:
        raise UserError(message)
    statistics = read_statistics(out)
    range_files.discard(out)  # not in the last step: a runner may repeat it
    return statistics
