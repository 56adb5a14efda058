"""Post-hoc EMA: the power-function average of any width, as a combination of snapshots of others.

An average at step t with exponent gamma weighs the parameters of step tau <= t by the density
p(tau) = (gamma + 1) tau^gamma / t^(gamma + 1). The weights x of snapshots i whose combination is
nearest, in L2, to the density that is wanted solve A x = b, with A_ij = <p_i, p_j> and b_i = <p_i,
p> (Karras et al. 2024, arXiv:2312.02696, section 3.2). Here they also sum to 1, so that parameters
which stood still come back as they were; with the paper's, which do so for many snapshots only,
those of five steps scale all parameters by up to 6%.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from numpy.typing import ArrayLike, NDArray

from flowtrain.model import Params
from flowtrain.state.ema import gamma_of_width
from schemas.errors import UserError

if TYPE_CHECKING:
    from flowtrain.state.snapshots import Snapshots

PREFIX = "posthoc"
# of a reconstructed average, as a share of what is wanted; beyond it another width would be had
WORST_MISFIT = 0.1


class Density(NamedTuple):
    """Averages at steps `t`, with exponents `gamma`: one, or arrays of them."""

    t: ArrayLike
    gamma: ArrayLike


def inner_product(a: Density, b: Density) -> NDArray[np.float64]:
    """<p_a, p_b>, the densities' product over all tau; in logarithms (t^gamma overflows)."""
    t_a, gamma_a, t_b, gamma_b = (np.asarray(value, np.float64) for value in (*a, *b))
    exponent = gamma_a + gamma_b + 1
    logarithm = (
        exponent * np.log(np.minimum(t_a, t_b))
        - (gamma_a + 1) * np.log(t_a)
        - (gamma_b + 1) * np.log(t_b)
    )
    return (gamma_a + 1) * (gamma_b + 1) / exponent * np.exp(logarithm)


def combination(snapshots: Density, wanted: Density) -> tuple[NDArray[np.float64], float]:
    """How to make one average of others.

    Args:
        snapshots: n of them, at steps up to the wanted one.
        wanted: one.

    Returns:
        Their weights, (n,), and the misfit: |combination - wanted| / |wanted| in L2.
    """
    t, gamma = (np.asarray(value, np.float64) for value in snapshots)
    scale = inner_product(snapshots, snapshots) ** -0.5  # of unit length: better conditioned
    gram = inner_product(Density(t[:, None], gamma[:, None]), Density(t[None, :], gamma[None, :]))
    gram, right = gram * scale[:, None] * scale[None, :], inner_product(snapshots, wanted) * scale
    # weights of 1 in all, by a Lagrange multiplier
    total = scale.mean()
    border = scale[:, None] / total
    system = np.block([[gram, border], [border.T, np.zeros((1, 1))]])
    x = np.linalg.lstsq(system, np.append(right, 1 / total), rcond=None)[0][:-1]
    length = float(inner_product(wanted, wanted))
    rest = length - 2 * x @ right + x @ gram @ x
    return x * scale, float(np.sqrt(max(rest, 0.0) / length))


def parse_width(weights: str) -> float | None:
    """The relative width in `posthoc0.13`; None for other names of weights.

    Raises:
        UserError: no number in (0, 0.28).
    """
    if not weights.startswith(PREFIX):
        return None
    try:
        width = float(weights[len(PREFIX) :])
    except ValueError:
        width = 0.0
    if not 0 < width < 0.28:
        raise UserError(
            f"weights {weights!r}: write {PREFIX} and a relative width in (0, 0.28), as in "
            f"{PREFIX}0.1"
        )
    return width


def reconstruct(
    snapshots: Snapshots, width: float, target: Any, step: int | None = None
) -> tuple[int, Params]:
    """(step, parameters) of the average of relative width `width`, by default at the last.

    Args:
        snapshots: of the run.
        width: sigma_rel.
        target: a tree of ShapeDtypeStructs with shardings: what to make.
        step: one with a snapshot.

    Raises:
        UserError: the run keeps no snapshots, has none of that step, or those up to it cannot make
            that width.
    """
    known = snapshots.steps()
    if not known:
        raise UserError(
            f"{snapshots.where}: no snapshots to reconstruct averages from; train with "
            "--set train.ema_power=[0.05,0.1] to the first train.ema_snapshot_every"
        )
    chosen = known[-1] if step is None else step
    if chosen not in known:
        raise UserError(
            f"{snapshots.where}: no snapshot of step {step}; there are {', '.join(map(str, known))}"
        )
    parts = [(s, name) for s in known if s <= chosen for name in snapshots.widths]
    gammas = {name: gamma_of_width(kept) for name, kept in snapshots.widths.items()}
    densities = Density(
        np.array([s for s, _ in parts]), np.array([gammas[name] for _, name in parts])
    )
    weights, misfit = combination(densities, Density(chosen, gamma_of_width(width)))
    if misfit > WORST_MISFIT:
        raise UserError(
            f"{snapshots.where}: {PREFIX}{width} would be {misfit:.0%} off, made of {len(parts)} "
            f"snapshots of {', '.join(snapshots.widths)}; ask for a width nearer to theirs, or "
            "train with a lower train.ema_snapshot_every"
        )
    total = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float64), target)
    for weight, (at, name) in zip(weights, parts, strict=True):
        part = snapshots.load(at, name, target)
        total = jax.tree.map(
            lambda sum_, leaf, w=weight: sum_ + w * np.asarray(leaf, np.float64), total, part
        )
    return chosen, jax.tree.map(
        lambda leaf, like: jax.device_put(leaf.astype(like.dtype), like.sharding), total, target
    )
