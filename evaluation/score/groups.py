"""Metrics beside the Fréchet distance, in groups that are asked for by name."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from evaluation.features.measure import Measured
from evaluation.metrics.frechet import frechet_distance
from evaluation.metrics.inception_score import ScoreSums, inception_score
from evaluation.metrics.kernel import kernel_distance
from evaluation.metrics.neighbours import density_coverage, precision_recall
from evaluation.metrics.uncertainty import disjoint_subsets, extrapolate
from evaluation.protocols import EvaluationProtocol
from schemas.errors import UserError
from schemas.rules import Rule, check, told

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


@dataclass(frozen=True)
class _Asked:
    """A name that was asked for, with the protocol and the number of samples it is asked of."""

    name: str
    protocol: EvaluationProtocol
    samples: int

    @property
    def few_to_split(self) -> bool:
        """Whether there is not a sample for each of the ten parts of an Inception Score."""
        return self.protocol.splits == "shuffled" and self.samples < 10

    @property
    def missing(self) -> bool:
        """Whether the protocol has no such group, with so many samples."""
        if self.name == "sfid":
            return not self.protocol.spatial
        if self.name == "is":
            return self.protocol.splits == "none" or self.few_to_split
        return False

    @property
    def least(self) -> int:
        """Samples that the group needs."""
        return GROUPS[self.name].least

    @property
    def few(self) -> bool:
        return self.samples < self.least


# Of a name that was asked for, in their order.
_REFUSALS: tuple[Rule[_Asked], ...] = (
    Rule(
        lambda asked: asked.name not in GROUPS,
        lambda asked: f"--metrics {asked.name}: unknown; known are {', '.join(GROUPS)} and {ALL}",
    ),
    Rule(
        lambda asked: asked.name == "is" and asked.few_to_split,
        lambda asked: f"--metrics is: needs at least 10 samples, not {asked.samples}",
    ),
    Rule(
        lambda asked: asked.name == "is" and asked.protocol.lacks_last_layer,
        f"--metrics is: {_NO_LAST_LAYER}; {_LAST_LAYER_FROM}",
    ),
    Rule(
        lambda asked: asked.missing,
        lambda asked: (
            f"--metrics {asked.name}: protocol {asked.protocol.name} has none; take --protocol adm"
        ),
    ),
    Rule(
        lambda asked: asked.few,
        lambda asked: (
            f"--metrics {asked.name}: needs at least {asked.least} samples, not {asked.samples}"
        ),
    ),
)


@dataclass(frozen=True)
class _Choice:
    """All names that were asked for, with the protocol and the number of samples."""

    names: Sequence[str]
    protocol: EvaluationProtocol
    samples: int

    @property
    def possible(self) -> list[_Asked]:
        """The groups that the protocol has."""
        groups = (_Asked(name, self.protocol, self.samples) for name in GROUPS)
        return [group for group in groups if not group.missing]

    @property
    def wanted(self) -> list[_Asked]:
        """Those of them that were asked for."""
        if ALL in self.names:
            return self.possible
        return [group for group in self.possible if group.name in self.names]

    @property
    def chosen(self) -> tuple[str, ...]:
        """Those of them that there are samples for."""
        return tuple(group.name for group in self.wanted if not group.few)

    @property
    def needs(self) -> str:
        """The others, each with how many it needs."""
        return ", ".join(f"{group.name} ({group.least})" for group in self.wanted if group.few)

    @property
    def smallest(self) -> int:
        """The fewest samples of an uncertainty's subsets."""
        return _smallest(self.samples)


# Of a choice that is made all the same.
_NOTICES: tuple[Rule[_Choice], ...] = (
    Rule(
        lambda choice: ALL in choice.names and choice.protocol.lacks_last_layer,
        f"left out: is ({_NO_LAST_LAYER}; {_LAST_LAYER_FROM})",
    ),
    Rule(
        lambda choice: bool(choice.needs),
        lambda choice: f"left out for want of samples: {choice.needs}",
    ),
    Rule(
        lambda choice: "uncertainty" in choice.chosen and choice.smallest <= choice.protocol.dim,
        lambda choice: (
            f"the distance at n = inf comes from subsets of {choice.smallest} to {choice.samples} "
            f"samples in {choice.protocol.dim} dimensions, where it is no line in 1/n; use at "
            f"least {2 * choice.protocol.dim + 2} samples"
        ),
    ),
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
    choice = _Choice(names, protocol, samples)
    if not names:
        free = (group.name for group in choice.possible if GROUPS[group.name].rows == "none")
        return tuple(free)
    for name in names:
        if name != ALL:
            check(_REFUSALS, _Asked(name, protocol, samples))
    for line in told(_NOTICES, choice):
        notify(line)
    return choice.chosen


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
