"""Whether more sampling steps made the samples of a flow worse, and what that says of the training.

Euler's method approaches the exact flow as its steps grow, so more steps can only be worse where
the learned velocities lead astray: the many small steps near the data follow velocities that
training hardly saw. A logit-normal t puts 1.4% of its draws above t = 0.9, where 10% of the steps
are taken.
"""

from collections.abc import Sequence
from itertools import pairwise

from evaluation.results import Result
from schemas.config import ObjectiveConfig
from schemas.solvers import ADAPTIVE

NOTICEABLE = 0.05  # share of the distance: two sets of a few thousand samples differ by 1-2% in FID


def worse_with_more_steps(results: Sequence[Result], objective: ObjectiveConfig) -> str | None:
    """One line about a run's clearest case; None where more steps are no worse.

    Only results that differ in nothing but their steps are held against each other.

    Args:
        results: in any order.
        objective: of the run; of a diffusion nothing is told, its steps are other ones.
    """
    if objective.kind != "flow":
        return None
    alike: dict[object, list[Result]] = {}
    for result in results:
        sampling = result.sampling
        if sampling is None or sampling.sampler == ADAPTIVE:
            continue
        but_steps = sampling.model_copy(update={"steps": 0, "nfe": 0})
        alike.setdefault(
            (but_steps, result.protocol.for_distance(), result.reference.digest), []
        ).append(result)
    found = [pair for group in alike.values() for pair in _worse_pairs(group)]
    if not found:
        return None
    fewer, more = max(found, key=lambda pair: pair[1].distance / pair[0].distance)
    assert fewer.sampling is not None
    assert more.sampling is not None
    cure = "train longer"
    if objective.time != "uniform":
        cure += ", or with objective.time=uniform (docs/training.md)"
    return (
        f"{more.sampling.steps} steps are worse than {fewer.sampling.steps} "
        f"({more.protocol.metric} {more.distance:.4g} and {fewer.distance:.4g}, cfg "
        f"{more.sampling.cfg:g}): the velocities near the data are undertrained; {cure}"
    )


def _worse_pairs(group: Sequence[Result]) -> list[tuple[Result, Result]]:
    """Neighbours in the number of steps of which the one with more steps is noticeably worse."""
    ordered = sorted(group, key=lambda result: result.sampling.steps if result.sampling else 0)
    return [
        (fewer, more)
        for fewer, more in pairwise(ordered)
        if more.distance > (1 + NOTICEABLE) * fewer.distance
    ]
