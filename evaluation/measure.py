"""Statistics of images and their comparison: what `stats` and `eval` share."""

import contextlib
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evaluation import models
from evaluation.imagesets import DECODED, ImageSet, batch_images, dataset_images, source_images
from evaluation.metrics import factor, statistics_distance
from evaluation.progress import MakeBar
from evaluation.protocols import EvaluationProtocol, Recipe, check_comparable, read_protocol
from evaluation.results import Reference, Result, Sampling, reference_of
from pipelines.quiet import quiet_log
from schemas.errors import UserError
from schemas.manifest import MANIFEST_NAME
from schemas.run import RUN_NAME
from schemas.statistics import FeatureStatistics, read_statistics

Notify = Callable[[str], object]


def protocol_of(recipe: Recipe, resolution: int) -> EvaluationProtocol:
    """The protocol with the weights that are installed here."""
    return EvaluationProtocol.resolve(recipe, models.extractor(recipe.extractor), resolution)


def measure_images(
    images: ImageSet,
    protocol: EvaluationProtocol,
    out: Path,
    beam_args: Sequence[str] = (),
    make_bar: MakeBar | None = None,
) -> FeatureStatistics:
    """Statistics of `images`, measured and written to `out`, in the place of what is there.

    Raises:
        UserError: an image set that changed or has fewer than two readable images; a broken shard.
    """
    with quiet_log():
        from evaluation import pipeline

    out.parent.mkdir(parents=True, exist_ok=True)
    config = pipeline.Config(images=images, protocol=protocol, out=str(out.absolute()))
    bar = make_bar(total=images.size, desc="measure", unit="image") if make_bar else None
    try:
        return pipeline.run(config, beam_args, bar)
    finally:
        if bar is not None:
            bar.close()


def kept_statistics(
    images: ImageSet,
    protocol: EvaluationProtocol,
    out: Path,
    beam_args: Sequence[str] = (),
    make_bar: MakeBar | None = None,
) -> FeatureStatistics:
    """As `measure_images`, but read back from `out` when the same was measured before; for files of our own only.

    Raises:
        UserError: as `measure_images`.
    """
    with contextlib.suppress(UserError):  # missing or damaged: measured again
        found = read_statistics(out)
        if read_protocol(found.protocol) == protocol and _facts(found).items() >= images.facts().items():
            return found
    return measure_images(images, protocol, out, beam_args, make_bar)


def check_out(out: Path) -> None:
    """Before any work: only statistics, whole or damaged, may be replaced by statistics.

    Raises:
        UserError: something else lies at `out`.
    """
    if out.is_dir() or (out.is_file() and not _is_replaceable(out)):
        raise UserError(f"{out}: is there and is not feature statistics; give another name, or delete it")


def _is_replaceable(path: Path) -> bool:
    try:
        with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as file:
            return {"mu", "sigma"} <= set(file.files)
    except zipfile.BadZipFile:  # it begins as an .npz does
        return True
    except (ValueError, EOFError, TypeError):  # the last for a lone array
        return path.stat().st_size == 0


def _facts(statistics: FeatureStatistics) -> dict[str, Any]:
    return dict(statistics.protocol.get("images", {}))


def read_gaussian(path: Path) -> FeatureStatistics:
    """Statistics of a file that a distance can be computed from, which is known before any sample is drawn.

    Raises:
        UserError: as `read_statistics`, or sigma is no covariance.
    """
    statistics = read_statistics(path)
    try:
        factor(statistics.sigma)
    except ValueError as error:
        raise UserError(f"{path}: sigma is {error}; make the statistics again") from None
    return statistics


def check_exists(reference: Path) -> None:
    """Before any work. Raises `UserError` when nothing is there."""
    if not reference.exists():
        raise UserError(f"{reference}: no such reference; make one with `flowtrain stats SOURCE {reference}`")


def load_reference(
    path: Path, recipe: Recipe, cache: Path, beam_args: Sequence[str] = (), make_bar: MakeBar | None = None
) -> tuple[FeatureStatistics, Path]:
    """Reference statistics from an .npz, or measured from a dataset and kept under `cache`.

    Raises:
        UserError: nothing there, or not what it says.
    """
    check_exists(path)
    if path.is_file():
        return read_gaussian(path), path
    images = dataset_images(path)
    out = cache / f"reference-{images.digest[:12]}-{recipe.name}.npz"
    return kept_statistics(images, protocol_of(recipe, images.resolution), out, beam_args, make_bar), path


def compare(
    subject: FeatureStatistics,
    reference: FeatureStatistics,
    protocol: EvaluationProtocol,
    sampling: Sampling | None,
    seconds: dict[str, float],
) -> Result:
    """One result from two statistics of the same protocol."""
    facts = _facts(subject)
    n = subject.moments.n if subject.moments else facts.get("n", 0)
    correct = facts.get("correct")
    return Result(
        distance=statistics_distance(subject, reference),
        accuracy=None if correct is None or not n else correct / n,
        n=n,
        sampling=sampling,
        images=facts,
        protocol=protocol,
        reference=reference_of(reference),
        seconds=seconds,
    )


def check_reference(
    protocol: EvaluationProtocol, reference: FeatureStatistics, where: Path, notify: Notify
) -> Reference:
    """Refuse a reference of another protocol; warn of one that does not say its own, is decoded, or is too small.

    Raises:
        UserError: as `check_comparable`.
    """
    theirs = read_protocol(reference.protocol)
    check_comparable(protocol, reference.dim, theirs, str(where))
    if theirs is None:
        notify(f"{where}: does not say with which extractor it was made; taken for {protocol.extractor}")
    described = reference_of(reference)
    if described.images.get("kind") == DECODED:
        notify(
            f"{where}: decoded latents, a reference that hides the VAE's own error; "
            "use `flowtrain stats` on the images themselves"
        )
    if described.n is not None:
        warn_of_rank(described.n, protocol.dim, "reference images", notify)
    return described


def warn_of_rank(n: int, dim: int, what: str, notify: Notify) -> None:
    """A covariance of d features needs more than d rows to have full rank; below, distances are biased upwards."""
    if n <= dim:
        notify(
            f"{n} {what} give a covariance of rank {max(n - 1, 0)} in {dim} dimensions; "
            f"use more than {dim} for a distance that can be compared"
        )


def compare_only(
    subject: Path,
    reference_path: Path,
    recipe: Recipe,
    *,
    num: int | None,
    resolution: int | None,
    crop: str,
    beam_args: Sequence[str],
    notify: Notify,
    make_bar: MakeBar,
) -> Result:
    """Compare finished images (statistics, an ADM batch, a dataset or a folder) with a reference; nothing is kept.

    Raises:
        UserError: subject or reference cannot be read, or were measured differently.
    """
    with tempfile.TemporaryDirectory() as scratch:
        cache = Path(scratch)
        reference, where = load_reference(reference_path, recipe, cache, beam_args, make_bar)
        theirs = read_protocol(reference.protocol)
        if subject.is_file() and _is_statistics(subject):
            statistics = read_gaussian(subject)
            mine = read_protocol(statistics.protocol)
            protocol = mine or theirs or protocol_of(recipe, resolution or 1)
            check_comparable(protocol, statistics.dim, mine, str(subject))
        else:
            images = _image_set(subject, num, resolution or (theirs.resolution if theirs else None), crop)
            protocol = protocol_of(recipe, images.resolution)
            check_comparable(protocol, reference.dim, theirs, str(where))  # before the work, not after it
            statistics = measure_images(images, protocol, cache / "subject.npz", beam_args, make_bar)
    check_reference(protocol, reference, where, notify)
    if statistics.moments:
        warn_of_rank(statistics.moments.n, protocol.dim, "images", notify)
    return compare(statistics, reference, protocol, None, {})


def _image_set(path: Path, num: int | None, resolution: int | None, crop: str) -> ImageSet:
    if path.is_file():
        return batch_images(path, num)
    if _is_dataset(path):
        return dataset_images(path, None, num)
    if not path.exists():
        raise UserError(f"{path}: nothing there; give a work directory, statistics, a dataset or a folder of images")
    if resolution is None:
        raise UserError(f"{path}: a folder of images needs --resolution, as the reference does not say its own")
    return source_images(str(path), "all", resolution, crop, num)


def _is_dataset(path: Path) -> bool:
    """Whether a directory is a dataset, perhaps an unfinished one, which reading it will tell."""
    return (path / MANIFEST_NAME).is_file() or any(path.glob("*.array_record*"))


def _is_statistics(path: Path) -> bool:
    """Whether a file is to be read as statistics rather than as a batch of images."""
    try:
        with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as file:
            return "arr_0" not in file.files or "mu" in file.files
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return True  # read_statistics says what is wrong with it


def is_run(path: Path) -> bool:
    """Whether a path is a work directory (perhaps an unfinished one) rather than finished images."""
    return (path / RUN_NAME).is_file() or (path / "checkpoints").is_dir()


def named_images(source: str, split: str | None, resolution: int | None, crop: str, num: int | None) -> ImageSet:
    """The images of what a person named: a dataset directory, or a source of images.

    Raises:
        UserError: nothing usable there, or a resolution that is missing or is not the dataset's.
    """
    path = Path(source)
    if path.is_file():
        return batch_images(path, num)
    if _is_dataset(path):
        images = dataset_images(path, split, num)
        if resolution not in (None, images.resolution):
            raise UserError(
                f"{source}: a dataset of {images.resolution} pixels, not {resolution}; leave --resolution out"
            )
        return images
    if resolution is None:
        raise UserError(f"{source}: say at which --resolution to measure it, the one of the samples it is for")
    return source_images(source, split or "train", resolution, crop, num)


def summary(statistics: FeatureStatistics, out: Path) -> dict[str, Any]:
    """What `stats` tells of its result."""
    protocol = read_protocol(statistics.protocol)
    assert protocol is not None, "written here, so its protocol is in it"
    return {
        "out": str(out),
        "digest": reference_of(statistics).digest,
        "protocol": protocol.model_dump(),
        "images": _facts(statistics),
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
