"""Paths from noise to data, and what can be known from one prediction at a point of a path.

Time runs from noise at t = 0 to data at t = 1, and x_t = alpha(t) x_1 + sigma(t) x_0 with x_0 ~
N(0, I). The linear path, alpha = t and sigma = 1 - t, has the velocity x_1 - x_0 (Lipman et al.
2022, arXiv:2210.02747; Liu et al. 2022, arXiv:2209.03003). The variance-preserving one is that of
DDPM (Ho et al. 2020, arXiv:2006.11239). With x_t known, each of velocity, noise (epsilon), data and
score gives the others, by solving two linear equations.

Arrays are (n, ...), t is (n,) in [0, 1], all float32.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int32

from flowtrain.shapes import AnyTimes, Count, PerRecord, Points


def _per_sample(t: AnyTimes, like: Float32[Array, "*point"]) -> Float32[Array, "..."]:
    return t.reshape(t.shape + (1,) * (like.ndim - t.ndim))


class Ends(NamedTuple):
    """Both ends of a path, known or predicted."""

    noise: Points
    data: Points


class Path(ABC):
    """x_t = alpha(t) data + sigma(t) noise."""

    @abstractmethod
    def coefficients(self, t: AnyTimes) -> tuple[AnyTimes, AnyTimes]:
        """(alpha, sigma) at t, each of t's shape."""

    @abstractmethod
    def derivatives(self, t: AnyTimes) -> tuple[AnyTimes, AnyTimes]:
        """(d alpha / dt, d sigma / dt) at t, each of t's shape."""

    @abstractmethod
    def grid(self, i: Int32[Array, "*i"], steps: Count) -> Float32[Array, "*i"]:
        """Time, of the shape of `i`, when step `i` of `steps` from noise begins; 1 at i = steps."""

    def interpolate(self, noise: Points, data: Points, t: AnyTimes) -> Points:
        """The point x_t on the path."""
        alpha, sigma = self._at(t, data)
        return sigma * noise + alpha * data

    def velocity(self, noise: Points, data: Points, t: AnyTimes) -> Points:
        """The derivative d x_t / dt."""
        d_alpha, d_sigma = (_per_sample(value, data) for value in self.derivatives(t))
        return d_alpha * data + d_sigma * noise

    def _at(self, t: AnyTimes, like: Points) -> tuple[Float32[Array, "..."], Float32[Array, "..."]]:
        alpha, sigma = self.coefficients(t)
        return _per_sample(alpha, like), _per_sample(sigma, like)

    def ends(self, kind: str, prediction: Points, x: Points, t: AnyTimes) -> Ends:
        """Noise and data from x_t and a prediction of one kind of `VIEWS`.

        Singular where the kind says nothing of an end: epsilon where alpha = 0, data where sigma =
        0, score at both.
        """
        return VIEWS[kind].ends(self, prediction, x, t)

    def view(self, kind: str, ends: Ends, t: AnyTimes) -> Points:
        """One kind of `VIEWS`, from both ends."""
        return VIEWS[kind].of(self, ends, t)

    def convert(self, kind: str, prediction: Points, x: Points, t: AnyTimes, to: str) -> Points:
        """A prediction of one kind as another kind; the same kind is returned as it is."""
        return prediction if kind == to else self.view(to, self.ends(kind, prediction, x, t), t)


@dataclass(frozen=True)
class LinearPath(Path):
    """x_t = (1 - t) noise + t data. Its velocity, data - noise, does not depend on t."""

    def coefficients(self, t: AnyTimes) -> tuple[AnyTimes, AnyTimes]:
        """See `Path`."""
        return t, 1 - t

    def derivatives(self, t: AnyTimes) -> tuple[AnyTimes, AnyTimes]:
        """See `Path`."""
        return jnp.ones_like(t), -jnp.ones_like(t)

    def grid(self, i: Int32[Array, "*i"], steps: Count) -> Float32[Array, "*i"]:
        """Equal steps."""
        return jnp.where(i < steps, i.astype(jnp.float32) / steps.astype(jnp.float32), 1.0)


@dataclass(frozen=True)
class VariancePreservingPath(Path):
    """DDPM's forward process: alpha^2 = prod(1 - beta) over linear betas, sigma^2 = 1 - alpha^2.

    Level k = 0 is data and k = `levels` the noisiest; t = 1 - k / levels. Between levels log alpha
    is linear in t. What other systems call timestep s = 0 ... levels - 1 is k - 1. float32 has t to
    3e-8 and so both coefficients to 2e-7; sigma alone, which is 0.01 at k = 1, to 1e-5 of itself.
    """

    beta_start: float = 1e-4
    beta_end: float = 0.02
    levels: int = 1000

    @cached_property
    def _log_alpha(self) -> np.ndarray:
        """(levels + 1,) float32, by level."""
        betas = np.linspace(self.beta_start, self.beta_end, self.levels)
        return np.concatenate([[0.0], 0.5 * np.cumsum(np.log1p(-betas))]).astype(np.float32)

    def coefficients(self, t: AnyTimes) -> tuple[AnyTimes, AnyTimes]:
        """See `Path`."""
        level, table = (1 - t) * self.levels, jnp.asarray(self._log_alpha)
        whole = jnp.clip(jnp.floor(level), 0, self.levels - 1)
        low = whole.astype(jnp.int32)
        log_alpha = table[low] + (level - whole) * (table[low + 1] - table[low])
        # abs, or sigma would be -0 at t = 1
        return jnp.exp(log_alpha), jnp.sqrt(jnp.abs(jnp.expm1(2 * log_alpha)))

    def derivatives(self, t: AnyTimes) -> tuple[AnyTimes, AnyTimes]:
        """See `Path`; that of sigma is infinite at t = 1."""
        table = jnp.asarray(self._log_alpha)
        low = jnp.clip(jnp.floor((1 - t) * self.levels), 0, self.levels - 1).astype(jnp.int32)
        alpha, sigma = self.coefficients(t)
        d_alpha = alpha * (table[low] - table[low + 1]) * self.levels
        return d_alpha, -alpha * d_alpha / sigma

    def grid(self, i: Int32[Array, "*i"], steps: Count) -> Float32[Array, "*i"]:
        """Whole levels, evenly spaced from the noisiest ("trailing", arXiv:2305.08891).

        In whole numbers, halves to even as NumPy rounds them, so that no device takes another
        level. More steps than levels repeat some.
        """
        level, rest = jnp.divmod(self.levels * (steps - i), steps)
        up = (2 * rest > steps) | ((2 * rest == steps) & (level % 2 == 1))
        return 1 - (level + up.astype(jnp.int32)).astype(jnp.float32) / self.levels


class View(NamedTuple):
    """One kind of prediction: how both ends follow from it, and it from both ends."""

    ends: Callable[[Path, Points, Points, AnyTimes], Ends]  # path, prediction, x, t
    of: Callable[[Path, Ends, AnyTimes], Points]


def _ends_of_velocity(path: Path, velocity: Points, x: Points, t: AnyTimes) -> Ends:
    """Solves x = alpha d + sigma n and v = alpha' d + sigma' n."""
    alpha, sigma = path._at(t, x)
    d_alpha, d_sigma = (_per_sample(value, x) for value in path.derivatives(t))
    determinant = alpha * d_sigma - sigma * d_alpha
    noise = (alpha * velocity - d_alpha * x) / determinant
    data = (d_sigma * x - sigma * velocity) / determinant
    return Ends(noise, data)


def _ends_of_noise(path: Path, noise: Points, x: Points, t: AnyTimes) -> Ends:
    alpha, sigma = path._at(t, x)
    return Ends(noise, (x - sigma * noise) / alpha)


def _ends_of_data(path: Path, data: Points, x: Points, t: AnyTimes) -> Ends:
    alpha, sigma = path._at(t, x)
    return Ends((x - alpha * data) / sigma, data)


def _ends_of_score(path: Path, score: Points, x: Points, t: AnyTimes) -> Ends:
    return _ends_of_noise(path, -path._at(t, x)[1] * score, x, t)


VIEWS: dict[str, View] = {
    "velocity": View(
        _ends_of_velocity, lambda path, ends, t: path.velocity(ends.noise, ends.data, t)
    ),
    "negative_velocity": View(
        lambda path, v, x, t: _ends_of_velocity(path, -v, x, t),
        lambda path, ends, t: -path.velocity(ends.noise, ends.data, t),
    ),
    "epsilon": View(_ends_of_noise, lambda path, ends, t: ends.noise),
    "data": View(_ends_of_data, lambda path, ends, t: ends.data),
    # Gradient of log p_t at x_t: -E[x_0 | x_t] / sigma (Tweedie).
    "score": View(_ends_of_score, lambda path, ends, t: -ends.noise / path._at(t, ends.noise)[1]),
}


def squared_error(prediction: Float[Array, " n *d"], target: Float[Array, " n *d"]) -> PerRecord:
    """Mean over all but the first axis, in float32: (n, ...) -> (n,)."""
    error = jnp.square(prediction.astype(jnp.float32) - target.astype(jnp.float32))
    return jnp.mean(error, axis=tuple(range(1, error.ndim)))
