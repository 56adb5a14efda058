"""Statistics compared with statistics: references, and what `eval` does with finished images."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from evaluation.features.imagesets import (
    DECODED,
    ImageSet,
    batch_images,
    dataset_images,
    source_images,
)
from evaluation.features.measure import (
    DEFAULTS,
    Measured,
    MeasureOptions,
    image_facts,
    is_dataset,
    kept_statistics,
    measure_images,
    protocol_of,
)
from evaluation.metrics import factor, statistics_distance
from evaluation.progress import Notify
from evaluation.protocols import EvaluationProtocol, Recipe, check_comparable, read_protocol
from evaluation.results import Reference, Result, Sampling, reference_of
from evaluation.score.groups import (
    ALL,
    GROUPS,
    choose,
    needs_reference_rows,
    needs_rows,
    score,
    with_reference,
)
from schemas.arrays import array_names
from schemas.errors import UserError
from schemas.run import CHECKPOINTS_DIR, RUN_NAME
from schemas.statistics import FeatureStatistics, read_statistics
from schemas.storage.directory import WORK
from schemas.storage.temporary import temporary_folder

_MANY = 2**31  # of statistics that do not say of how many images they are


def read_gaussian(path: Path) -> FeatureStatistics:
    """Statistics of a file that a distance can be computed from, which is known before any sample
    is drawn.

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
        raise UserError(
            f"{reference}: no such reference; make one with `flowtrain stats SOURCE {reference}`"
        )
    if reference.is_dir() and not is_dataset(reference) and not (reference / WORK).is_dir():
        raise UserError(
            f"{reference}: no dataset; of a folder of images make `flowtrain stats {reference} "
            "OUT.npz`"
        )


def load_reference(
    path: Path, recipe: Recipe, cache: Path, options: MeasureOptions = DEFAULTS
) -> Measured:
    """Reference statistics from an .npz, or measured from a dataset and kept under `cache`.

    Raises:
        UserError: nothing there, not what it says, or without the feature rows that are needed.
    """
    check_exists(path)
    if path.is_file():
        reference = Measured(read_gaussian(path), path)
        if options.keep_features:
            reference.rows()  # now, rather than after the samples
        return reference
    images = dataset_images(path)
    out = cache / f"reference-{images.digest[:12]}-{recipe.name}.npz"
    return kept_statistics(
        images, protocol_of(recipe, images.resolution, options.weights), out, options
    )


def compare(
    subject: Measured,
    reference: Measured,
    protocol: EvaluationProtocol,
    groups: Sequence[str] = (),
    *,
    sampling: Sampling | None = None,
    seconds: dict[str, float] | None = None,
    mean_nfe: float | None = None,
) -> Result:
    """One result from two statistics of the same protocol, with the metrics of some groups.

    Raises:
        UserError: as `evaluation.score.groups.score`.
    """
    statistics = subject.statistics
    facts = image_facts(statistics)
    n = statistics.moments.n if statistics.moments else facts.get("n", 0)
    correct = facts.get("correct")
    return Result(
        distance=statistics_distance(statistics, reference.statistics),
        metrics=score(groups, subject, reference),
        mean_nfe=mean_nfe,
        accuracy=None if correct is None or not n else correct / n,
        n=n,
        sampling=sampling,
        images=facts,
        protocol=protocol,
        reference=reference_of(reference.statistics),
        seconds=seconds or {},
    )


def check_reference(
    protocol: EvaluationProtocol, reference: FeatureStatistics, where: Path, notify: Notify
) -> Reference:
    """Refuse a reference of another protocol; warn of one that does not say its own, is decoded, or
    is too small.

    Raises:
        UserError: as `check_comparable`.
    """
    theirs = read_protocol(reference.protocol)
    check_comparable(protocol, reference.dim, theirs, str(where))
    if theirs is None:
        notify(
            f"{where}: does not say with which extractor it was made; taken for "
            f"{protocol.extractor}"
        )
    described = reference_of(reference)
    if described.images.get("kind") == DECODED:
        notify(
            f"{where}: decoded latents, a reference that hides the VAE's own error; "
            "use `flowtrain stats` on the images themselves"
        )
    _warn_of_unreadable(reference, str(where), notify)
    if described.n is not None:
        warn_of_rank(described.n, protocol.dim, "reference images", notify)
    return described


def check_named(
    reference: Path, recipe: Recipe, metrics: Sequence[str], samples: int = _MANY
) -> None:
    """What --dry-run can tell of a reference and of metrics, without a network and its weights.

    Raises:
        UserError: no such reference, a file that is none, or a metric that cannot be had.
    """
    check_exists(reference)
    if reference.is_file():
        read_statistics(reference)
    choose(metrics, EvaluationProtocol.unsaid(recipe), samples)


def check_subject(subject: Path) -> None:
    """Before any work. Raises `UserError` when nothing is there."""
    if not subject.exists():
        raise UserError(
            f"{subject}: nothing there; give a work directory, statistics, a dataset or a folder "
            "of images"
        )


def warn_of_rank(n: int, dim: int, what: str, notify: Notify) -> None:
    """A covariance of d features needs more than d rows to have full rank; below, distances are
    biased upwards.
    """
    if n <= dim:
        notify(
            f"{n} {what} give a covariance of rank {max(n - 1, 0)} in {dim} dimensions; "
            f"use more than {dim} for a distance that can be compared"
        )


def _warn_of_unreadable(statistics: FeatureStatistics, where: str, notify: Notify) -> None:
    """The images that were allowed to be passed over are missed in the distance all the same."""
    rejected = image_facts(statistics).get("rejected")
    if rejected:
        notify(f"{where}: {rejected} unreadable images are left out")


@dataclass(frozen=True)
class Comparison:
    """Finished images (statistics, an ADM batch, a dataset or a folder) and what to compare them
    with.
    """

    subject: Path
    reference: Path
    recipe: Recipe
    num: int | None = None
    resolution: int | None = None
    crop: str = "adm"
    metrics: tuple[str, ...] = ()


def compare_only(comparison: Comparison, options: MeasureOptions, notify: Notify) -> Result:
    """Compare finished images with a reference; nothing is kept.

    Raises:
        UserError: subject or reference cannot be read, or were measured differently.
    """
    subject, recipe, where = comparison.subject, comparison.recipe, comparison.reference
    asked = tuple(GROUPS.keys() & set(comparison.metrics))
    if ALL in comparison.metrics:
        asked = tuple(GROUPS)
    with temporary_folder() as cache:
        reference = load_reference(
            where, recipe, cache, replace(options, keep_features=needs_reference_rows(asked))
        )
        options = replace(options, keep_features=needs_rows(asked))
        if subject.is_file() and _is_statistics(subject):
            protocol, measured = _read_subject(comparison, reference, notify)
        else:
            protocol, measured = _measure_subject(comparison, reference, cache, options)
        check_reference(protocol, reference.statistics, where, notify)
        _warn_of_unreadable(measured.statistics, str(subject), notify)
        moments = measured.statistics.moments
        groups = choose(comparison.metrics, protocol, moments.n if moments else _MANY, notify)
        if not comparison.metrics:  # statistics of others may lack what costs nothing
            groups = tuple(name for name in groups if _has_sums_for(name, measured, reference))
        groups = with_reference(groups, comparison.metrics, reference, notify)
        if moments:
            warn_of_rank(moments.n, protocol.dim, "images", notify)
        return compare(measured, reference, protocol, groups)


def _read_subject(
    comparison: Comparison, reference: Measured, notify: Notify
) -> tuple[EvaluationProtocol, Measured]:
    """Statistics of a file, with its own protocol, or else with the reference's."""
    subject = comparison.subject
    measured = Measured(read_gaussian(subject), subject)
    mine = read_protocol(measured.statistics.protocol)
    theirs = read_protocol(reference.statistics.protocol)
    protocol = mine or theirs or EvaluationProtocol.unsaid(comparison.recipe)
    if mine is None:
        notify(
            f"{subject}: does not say with which extractor it was made; taken for "
            f"{protocol.extractor}"
        )
    check_comparable(protocol, measured.statistics.dim, mine, str(subject))
    return protocol, measured


def _measure_subject(
    comparison: Comparison, reference: Measured, cache: Path, options: MeasureOptions
) -> tuple[EvaluationProtocol, Measured]:
    """Statistics of images, measured now under the recipe's protocol."""
    theirs = read_protocol(reference.statistics.protocol)
    resolution = comparison.resolution or (theirs.resolution if theirs else None)
    images = _image_set(comparison.subject, comparison.num, resolution, comparison.crop)
    protocol = protocol_of(comparison.recipe, images.resolution, options.weights)
    # Before the work, not after it: what cannot be compared is not measured.
    check_comparable(protocol, reference.statistics.dim, theirs, str(comparison.reference))
    groups = choose(comparison.metrics, protocol, images.size)
    with_reference(groups, comparison.metrics, reference)
    return protocol, measure_images(images, protocol, cache / "subject.npz", options)


def _has_sums_for(group: str, subject: Measured, reference: Measured) -> bool:
    if group == "sfid":
        return subject.statistics.spatial is not None and reference.statistics.spatial is not None
    return subject.statistics.scores is not None


def _image_set(path: Path, num: int | None, resolution: int | None, crop: str) -> ImageSet:
    if path.is_file():
        return batch_images(path, num)
    if is_dataset(path):
        return dataset_images(path, None, num)
    check_subject(path)
    if resolution is None:
        raise UserError(
            f"{path}: a folder of images needs --resolution, as the reference does not say its own"
        )
    return source_images(str(path), "all", resolution, crop, num)


def _is_statistics(path: Path) -> bool:
    """Whether a file is to be read as statistics rather than as a batch of images."""
    try:
        names = array_names(path)
        return "arr_0" not in names or "mu" in names
    except ValueError:
        return True  # read_statistics says what is wrong with it


def is_run(path: Path) -> bool:
    """Whether a path is a work directory (perhaps an unfinished one) rather than finished
    images.
    """
    return (path / RUN_NAME).is_file() or (path / CHECKPOINTS_DIR).is_dir()
