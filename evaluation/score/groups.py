"""Metrics beside the Fréchet distance, in groups that are asked for by name."""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

from evaluation.features.measure import Measured
from evaluation.metrics.frechet import frechet_distance
from evaluation.metrics.inception_score import ScoreSums, inception_score
from evaluation.metrics.kernel import kernel_distance
from evaluation.metrics.neighbours import density_coverage, precision_recall
from evaluation.metrics.uncertainty import disjoint_subsets, extrapolate
from evaluation.protocols import EvaluationProtocol
from schemas.errors import UserError

ALL = "all"
PARTS = 5  # disjoint subsets of the uncertainty
POINTS = 10  # of the line in 1/n
KERNEL_SUBSET = 1000


class Group(NamedTuple):
    """What is computed together: its names in results, from samples and reference.

    `rows`: whose feature rows it needs, of "both" or of the "samples"; `least`: the fewest samples.
    """

    keys: tuple[str, ...]
    compute: Callable[[Measured, Measured], tuple[float, ...]]
    rows: Literal["none", "samples", "both"] = "none"
    least: int = 2


def _sfid(subject: Measured, reference: Measured) -> tuple[float, ...]:
    first, second = subject.statistics.spatial, reference.statistics.spatial
    assert first is not None, "the protocol asks for it"
    assert second is not None, "`with_reference` was asked"
    return (frechet_distance(first.mu, first.sigma, second.mu, second.sigma),)


def _inception_score(subject: Measured, reference: Measured) -> tuple[float, ...]:
    scores = subject.statistics.scores
    if scores is None:
        raise UserError(
            f"{subject.file}: holds no class probabilities, so there is no Inception Score; "
            "measure again"
        )
    return inception_score(
        [ScoreSums(int(n), float(plogp), p) for n, plogp, p in zip(*scores, strict=True)]
    )


def _precision_recall(subject: Measured, reference: Measured) -> tuple[float, ...]:
    return precision_recall(reference.manifold(3), subject.rows(), 3)


def _density_coverage(subject: Measured, reference: Measured) -> tuple[float, ...]:
    return density_coverage(reference.manifold(5), subject.rows(), 5)


def _kernel(subject: Measured, reference: Measured) -> tuple[float, ...]:
    found = kernel_distance(subject.rows(), reference.rows(), subset_size=KERNEL_SUBSET)
    return found.kid, found.kid_std, found.kid_sem


def _uncertainty(subject: Measured, reference: Measured) -> tuple[float, ...]:
    features, gaussian = subject.rows(), (reference.statistics.mu, reference.statistics.sigma)
    parts = disjoint_subsets(features, *gaussian, parts=PARTS)
    line = extrapolate(features, *gaussian, points=POINTS, smallest=_smallest(len(features)))
    return parts.mean, parts.std, line.value, line.standard_error


def _smallest(samples: int) -> int:
    """The fewest samples of the line in 1/n."""
    return min(5000, samples // 2)


GROUPS: Mapping[str, Group] = {
    "sfid": Group(("sfid",), _sfid),
    "is": Group(("inception_score", "inception_score_std"), _inception_score),
    "pr": Group(("precision", "recall"), _precision_recall, rows="both", least=4),
    "dc": Group(("density", "coverage"), _density_coverage, rows="both", least=6),
    "kid": Group(("kid", "kid_std", "kid_sem"), _kernel, rows="both", least=KERNEL_SUBSET),
    "uncertainty": Group(
        ("fd_parts", "fd_parts_std", "fd_infinity", "fd_infinity_se"),
        _uncertainty,
        "samples",
        4 * POINTS,
    ),
}


_NO_LAST_LAYER = "the weights lack the network's last layer, or nobody vouches for theirs"
_LAST_LAYER_FROM = (
    "give the published .pth, or name the SHA-256 of the file with --extractor-sha256"
)


def choose(
    names: Sequence[str],
    protocol: EvaluationProtocol,
    samples: int,
    notify: Callable[[str], object] = lambda message: None,
) -> tuple[str, ...]:
    """The groups that were asked for, in the table's order; `all` of those that the protocol has.

    Without any name, those that cost nothing. `notify` is told of those of `all` that need more
    samples, and of an uncertainty whose subsets are too small for its line in 1/n.

    Raises:
        UserError: an unknown name, one that the protocol does not have, or too few samples for it.
    """
    missing = {"sfid"} if not protocol.spatial else set[str]()
    missing |= (
        {"is"}
        if protocol.splits == "none" or (protocol.splits == "shuffled" and samples < 10)
        else set[str]()
    )
    possible = [name for name in GROUPS if name not in missing]
    if not names:
        return tuple(name for name in possible if GROUPS[name].rows == "none")
    for name in names:
        if name not in (*GROUPS, ALL):
            raise UserError(f"--metrics {name}: unknown; known are {', '.join(GROUPS)} and {ALL}")
        if name == "is" and protocol.splits == "shuffled" and samples < 10:
            raise UserError(f"--metrics is: needs at least 10 samples, not {samples}")
        if name == "is" and protocol.lacks_last_layer:
            raise UserError(f"--metrics is: {_NO_LAST_LAYER}; {_LAST_LAYER_FROM}")
        if name in missing:
            raise UserError(
                f"--metrics {name}: protocol {protocol.name} has none; take --protocol adm"
            )
        if name != ALL and samples < GROUPS[name].least:
            raise UserError(
                f"--metrics {name}: needs at least {GROUPS[name].least} samples, not {samples}"
            )
    wanted = possible if ALL in names else names
    if ALL in names and protocol.lacks_last_layer:
        notify(f"left out: is ({_NO_LAST_LAYER}; {_LAST_LAYER_FROM})")
    few = [name for name in possible if name in wanted and samples < GROUPS[name].least]
    if few:
        notify(
            "left out for want of samples: "
            f"{', '.join(f'{name} ({GROUPS[name].least})' for name in few)}"
        )
    chosen = tuple(name for name in possible if name in wanted and samples >= GROUPS[name].least)
    if "uncertainty" in chosen and _smallest(samples) <= protocol.dim:
        notify(
            f"the distance at n = inf comes from subsets of {_smallest(samples)} to {samples} "
            "samples in "
            f"{protocol.dim} dimensions, where it is no line in 1/n; use at least "
            f"{2 * protocol.dim + 2} samples"
        )
    return chosen


def with_reference(
    groups: Sequence[str],
    names: Sequence[str],
    reference: Measured,
    notify: Callable[[str], object] = lambda message: None,
) -> tuple[str, ...]:
    """The chosen groups that a reference has enough for, before any sample is drawn.

    `names` are those that were asked for: of `all`, `notify` is told what is left out.

    Raises:
        UserError: it lacks what one needs that was asked for by its name, or the feature rows of
            any.
    """
    kept, few = [], []
    for name in groups:
        group = GROUPS[name]
        if name == "sfid" and reference.statistics.spatial is None:
            lack, why = (
                "spatial features",
                "holds no spatial features, so no sFID; make it with `flowtrain stats`",
            )
        elif group.rows == "both" and len(reference.rows()) < group.least:
            lack = f"{group.least} images"
            why = f"{len(reference.rows())} images; --metrics {name} needs at least {group.least}"
        else:
            kept.append(name)
            continue
        if name in names:
            raise UserError(f"{reference.file}: {why}")
        few.append(f"{name} ({lack})")
    if few and names:
        notify(f"{reference.file}: left out, as it lacks what they need: {', '.join(few)}")
    return tuple(kept)


def needs_rows(groups: Sequence[str]) -> bool:
    """Whether any of the groups needs the feature rows of samples."""
    return any(GROUPS[name].rows != "none" for name in groups)


def needs_reference_rows(groups: Sequence[str]) -> bool:
    """Whether any of the groups needs those of a reference too."""
    return any(GROUPS[name].rows == "both" for name in groups)


def lacking(groups: Sequence[str], metrics: Mapping[str, float]) -> tuple[str, ...]:
    """The groups that are not in metrics yet."""
    return tuple(name for name in groups if not set(GROUPS[name].keys) <= metrics.keys())


def score(groups: Sequence[str], subject: Measured, reference: Measured) -> dict[str, float]:
    """Every metric of the groups. Raises `UserError` where a reference does not hold what it
    needs.
    """
    found: dict[str, float] = {}
    for name in groups:
        found |= dict(
            zip(
                GROUPS[name].keys, map(float, GROUPS[name].compute(subject, reference)), strict=True
            )
        )
    return found
