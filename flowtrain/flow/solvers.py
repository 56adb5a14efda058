"""From noise to data: solvers of a path's ODE or SDE, as steps of one compiled loop.

The number of steps is a traced number, so one compilation serves every length. What a stochastic
solver adds to sample i follows from its own key, and the adaptive solver chooses its steps for each
sample alone: a sample does not depend on its neighbours.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Shaped

from flowtrain.flow.path import Path
from flowtrain.shapes import (
    AnyTimes,
    Count,
    Labels,
    Numbers,
    PerRecord,
    Points,
    RandomKeys,
    Scalar,
    Times,
)
from schemas.solvers import ADAPTIVE, EVALUATIONS

# (x (n, ...), t (n,), label (n,)) -> (n, ...)
Prediction = Callable[[Points, Times, Labels], Points]
LAST_STEP = 0.04  # of the SDE, deterministic: its drift is singular at data. SiT's size
SBDM_START = 1e-3  # where the diffusion of that name is still finite
MOST_ADAPTIVE_STEPS = 10_000


class Problem(NamedTuple):
    """What a solver integrates.

    A path; a kind of prediction on it (of `flowtrain.flow.path.VIEWS`); the prediction; the labels
    (n,) it is given; `shift` of the time steps (see `shifted`).
    """

    path: Path
    output: str
    predict: Prediction
    label: Labels
    shift: Scalar | float = 1.0

    def view(self, kind: str, x: Points, t: Scalar) -> Points:
        """The prediction at x (n, ...) and time t (), as another kind of `VIEWS`."""
        time = jnp.full(x.shape[:1], t)
        return self.path.convert(self.output, self.predict(x, time, self.label), x, time, kind)

    def velocity(self, x: Points, t: Scalar) -> Points:
        """dx/dt of the path's own ODE."""
        return self.view("velocity", x, t)

    def time(self, i: Count, steps: Count) -> Scalar:
        """() float32, when step `i` of `steps` begins."""
        return shifted(self.path.grid(i, steps), self.shift)


# (problem, x (n, ...), keys (n,), i () int32, steps () int32) -> x after step i.
Advance = Callable[[Problem, Points, RandomKeys, Count, Count], Points]


class Solution(NamedTuple):
    """x (n, ...) at t = 1, and how often the network was asked for each of them, (n,) int32."""

    x: Points
    evaluations: Numbers


def shifted(t: AnyTimes, shift: Scalar | float) -> AnyTimes:
    """Time steps moved towards noise (shift > 1), with both ends kept.

    sigma = 1 - t becomes shift sigma / (1 + (shift - 1) sigma), as in Esser et al. 2024
    (arXiv:2403.03206, equation 23) for images of more pixels.
    """
    sigma = 1 - t
    return jnp.where(shift == 1.0, t, 1 - shift * sigma / (1 + (shift - 1) * sigma))


def _euler(problem: Problem, x: Points, keys: RandomKeys, i: Count, steps: Count) -> Points:
    """x += dt v: Euler's method in t on the path's own ODE."""
    begin, end = problem.time(i, steps), problem.time(i + 1, steps)
    return x + (end - begin) * problem.velocity(x, begin)


def _heun(problem: Problem, x: Points, keys: RandomKeys, i: Count, steps: Count) -> Points:
    """The mean of the velocities at both ends of an Euler step: second order, two evaluations."""
    begin, end = problem.time(i, steps), problem.time(i + 1, steps)
    first = problem.velocity(x, begin)
    second = problem.velocity(x + (end - begin) * first, end)
    return x + (end - begin) / 2 * (first + second)


def _midpoint(problem: Problem, x: Points, keys: RandomKeys, i: Count, steps: Count) -> Points:
    """The velocity in the middle of an Euler step: second order, two evaluations."""
    begin, end = problem.time(i, steps), problem.time(i + 1, steps)
    half = (end - begin) / 2
    return x + (end - begin) * problem.velocity(x + half * problem.velocity(x, begin), begin + half)


def _rk4(problem: Problem, x: Points, keys: RandomKeys, i: Count, steps: Count) -> Points:
    """The classical Runge-Kutta method: fourth order, four evaluations."""
    begin, end = problem.time(i, steps), problem.time(i + 1, steps)
    dt = end - begin
    first = problem.velocity(x, begin)
    second = problem.velocity(x + dt / 2 * first, begin + dt / 2)
    third = problem.velocity(x + dt / 2 * second, begin + dt / 2)
    fourth = problem.velocity(x + dt * third, end)
    return x + dt / 6 * (first + 2 * second + 2 * third + fourth)


def _ddim(
    problem: Problem,
    x: Points,
    keys: RandomKeys,
    i: Count,
    steps: Count,
    *,
    eta: float = 0.0,
) -> Points:
    """Both ends as predicted here, at the next time (Song et al. 2020, equation 12).

    arXiv:2010.02502.

    With eta = 1 the step draws from the posterior q(x_next | x_t, data): DDPM's ancestral sampling
    with the smaller of its two variances (Ho et al. 2020). On the linear path and with eta = 0 it
    is Euler's step.
    """
    path = problem.path
    t, after = problem.time(i, steps), problem.time(i + 1, steps)
    time = jnp.full(x.shape[:1], t)
    ends = path.ends(problem.output, problem.predict(x, time, problem.label), x, time)
    (alpha, sigma), (alpha_after, sigma_after) = path.coefficients(t), path.coefficients(after)
    # Correlation of the noise in x_next and x_t under q: written so that eta = 1 subtracts nothing
    # from a square.
    correlation = (alpha / alpha_after) * (sigma_after / sigma)
    predicted_noise = jnp.sqrt(1 - eta**2 + jnp.square(eta * correlation))
    x = alpha_after * ends.data + sigma_after * predicted_noise * ends.noise
    if eta == 0:
        return x
    fresh_noise = jnp.sqrt(jnp.maximum(1 - jnp.square(correlation), 0.0))
    return x + eta * sigma_after * fresh_noise * _fresh(keys, i, x)


def _fresh(keys: RandomKeys, i: Count, like: Points) -> Points:
    """Normal noise of step i, a row a key."""
    return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, i), like.shape[1:]))(keys)


# w(t) of the SDE, by SiT's names (Ma et al. 2024, arXiv:2401.08740, table 8 and section 2.4).
DIFFUSIONS: Mapping[str, Callable[[Path, AnyTimes], AnyTimes]] = {
    "sigma": lambda path, t: path.coefficients(t)[1],
    "constant": lambda path, t: jnp.ones_like(t),
    "linear": lambda path, t: 1 - t,
    "decreasing": lambda path, t: 0.25 * jnp.square(jnp.cos(jnp.pi * t) + 1),
    "increasing-decreasing": lambda path, t: jnp.square(jnp.sin(jnp.pi * t)),
    "sbdm": lambda path, t: _score_weight(path, t),
}


def _score_weight(path: Path, t: AnyTimes) -> AnyTimes:
    """alpha'/alpha sigma^2 - sigma sigma': the weight of the score in the velocity."""
    (alpha, sigma), (d_alpha, d_sigma) = path.coefficients(t), path.derivatives(t)
    return d_alpha / alpha * jnp.square(sigma) - sigma * d_sigma


def _sde(
    problem: Problem,
    x: Points,
    keys: RandomKeys,
    i: Count,
    steps: Count,
    *,
    diffusion: str,
) -> Points:
    """Euler-Maruyama on dx = (v + w s) dt + sqrt(2 w) dW, s the score: the same marginals as the
    ODE for any w(t).

    As SiT: all steps but the last are equal and end LAST_STEP before the data (or 1 / steps, if
    that is less); the last takes the drift alone.
    """
    start = SBDM_START if diffusion == "sbdm" else 0.0
    stop = 1 - jnp.minimum(LAST_STEP, 1 / steps)
    number = i.astype(jnp.float32)
    equal_steps = jnp.maximum(steps - 1, 1).astype(jnp.float32)
    t = start + (stop - start) * number / equal_steps
    last = i == steps - 1
    t = shifted(jnp.where(last, jnp.where(steps == 1, start, stop), t), problem.shift)
    after = shifted(start + (stop - start) * (number + 1) / equal_steps, problem.shift)
    dt = jnp.where(last, 1.0, after) - t
    weight = DIFFUSIONS[diffusion](problem.path, t)
    time = jnp.full(x.shape[:1], t)
    prediction = problem.predict(x, time, problem.label)
    convert = functools.partial(problem.path.convert, problem.output, prediction, x, time)
    velocity, score = convert("velocity"), convert("score")
    drifted = x + dt * (velocity + weight * score)
    return drifted + jnp.where(last, 0.0, jnp.sqrt(2 * weight * dt)) * _fresh(keys, i, x)


STEPPERS: Mapping[str, Advance] = {
    "euler": _euler,
    "heun": _heun,
    "midpoint": _midpoint,
    "rk4": _rk4,
    "ddim": _ddim,
    "ddpm": functools.partial(_ddim, eta=1.0),
    "sde": functools.partial(_sde, diffusion="sigma"),  # SiT's default
    **{
        f"sde-{name}": functools.partial(_sde, diffusion=name)
        for name in DIFFUSIONS
        if name != "sigma"
    },
}


def integrate(
    solver: str,
    problem: Problem,
    noise: Points,
    keys: RandomKeys,
    steps: Count | int,
    tolerance: float = 1e-5,
) -> Solution:
    """From x at t = 0 to x at t = 1.

    Args:
        solver: a name of `STEPPERS`, or `dopri5`.
        problem: what to integrate.
        noise: (n, ...) float32, x at t = 0.
        keys: (n,) PRNG keys, for solvers that add noise.
        steps: () int, traced or not, at least 1; `dopri5` chooses its own.
        tolerance: relative and absolute, of `dopri5`.
    """
    if solver == ADAPTIVE:
        return _DormandPrince(problem, tolerance).solve(noise)
    count = jnp.asarray(steps, jnp.int32)
    x = jax.lax.fori_loop(
        0, count, lambda i, x: STEPPERS[solver](problem, x, keys, i, count), noise
    )
    return Solution(x, jnp.full(noise.shape[:1], count * EVALUATIONS[solver], jnp.int32))


class _Adaptive(NamedTuple):
    """Where the adaptive solver is with each of n samples.

    Attributes:
        x: (n, ...).
        slope: (n, ...) dx/dt at x.
        t: (n,).
        dt: (n,) the next step's length.
        tries: (n,) int32 steps taken or refused so far.
        refused: (n,) bool, whether the last step was refused.
    """

    x: Points
    slope: Points
    t: Times
    dt: PerRecord
    tries: Numbers
    refused: Bool[Array, " n"]

    def unfinished(self) -> Bool[Array, " n"]:
        """(n,) bool."""
        return (self.t < 1) & (self.tries < MOST_ADAPTIVE_STEPS)


@dataclass(frozen=True, eq=False)
class _DormandPrince:
    """Dormand & Prince 1980, the fourth-order result as error estimate, each sample on its own.

    A step is taken where the root mean square of error / (tolerance + tolerance max(|x|, |x_next|))
    is at most 1; the next one is 0.9 error^(-1/5) times as long, between 0.2 and 10 times, or no
    longer after a refusal (Hairer, Norsett, Wanner 1993, II.4, also for the first step). x is NaN
    where `MOST_ADAPTIVE_STEPS` do not reach t = 1.
    """

    problem: Problem
    tolerance: float

    def solve(self, noise: Points) -> Solution:
        """From x (n, ...) at t = 0 to x at t = 1."""
        state = jax.lax.while_loop(
            lambda state: jnp.any(state.unfinished()), self.advance, self.start(noise)
        )
        x = jnp.where(_per_sample(state.t < 1, noise), jnp.nan, state.x)
        # two evaluations at the start; the last slope of a step is the first one of the next
        return Solution(x, 2 + (len(_DORMAND_PRINCE) - 1) * state.tries)

    def start(self, noise: Points) -> _Adaptive:
        """The state before the first step, whose length follows from two slopes."""
        t = jnp.zeros(noise.shape[:1])
        first = self.slope(noise, jnp.zeros(noise.shape[:1]))
        scale = self.scale(noise, noise)
        sizes = _norm(noise, scale), _norm(first, scale)
        guess = jnp.where(
            jnp.minimum(*sizes) < 1e-5, 1e-6, 0.01 * sizes[0] / jnp.maximum(sizes[1], 1e-30)
        )
        guess = jnp.minimum(guess, 1.0)
        beside = self.slope(noise + _per_sample(guess, noise) * first, guess)
        steepest = jnp.maximum(sizes[1], _norm(beside - first, scale) / guess)
        dt = jnp.where(
            steepest <= 1e-15,
            jnp.maximum(1e-6, guess * 1e-3),
            (0.01 / jnp.maximum(steepest, 1e-30)) ** 0.2,
        )
        return _Adaptive(
            x=noise,
            slope=first,
            t=t,
            dt=jnp.minimum(jnp.minimum(100 * guess, dt), 1.0),
            tries=jnp.zeros_like(t, jnp.int32),
            refused=t > 0,
        )

    def advance(self, state: _Adaptive) -> _Adaptive:
        """One step, taken or refused, of every sample that is not finished."""
        active = state.unfinished()
        dt = jnp.minimum(state.dt, 1 - state.t)
        x, slopes = self.stages(state, dt)
        error = _norm(
            _per_sample(dt, x) * _combined(_DORMAND_PRINCE[-1], slopes), self.scale(state.x, x)
        )
        error = jnp.where(jnp.isfinite(error), error, jnp.inf)
        taken = active & (error <= 1)
        end = dt >= 1 - state.t  # to exactly 1, whatever the sum rounds to
        longest = jnp.where(state.refused, 1.0, 10.0)
        factor = jnp.clip(0.9 * jnp.maximum(error, 1e-10) ** -0.2, 0.2, longest)
        return _Adaptive(
            x=jnp.where(_per_sample(taken, x), x, state.x),
            slope=jnp.where(_per_sample(taken, x), slopes[-1], state.slope),
            t=jnp.where(taken, jnp.where(end, 1.0, state.t + dt), state.t),
            dt=jnp.where(active, dt * factor, state.dt),
            tries=state.tries + active.astype(jnp.int32),
            refused=active & ~taken,
        )

    def stages(self, state: _Adaptive, dt: PerRecord) -> tuple[Points, list[Points]]:
        """The fifth-order result of a step of length dt (n,), and the slopes of its stages."""
        x, slopes = state.x, [state.slope]
        for row in _DORMAND_PRINCE[:-1]:
            x = state.x + _per_sample(dt, state.x) * _combined(row, slopes)
            slopes.append(self.slope(x, state.t + sum(row) * dt))
        return x, slopes  # x of the last row is the result

    def slope(self, x: Points, t: Times) -> Points:
        """dx/dt at x (n, ...) and the samples' own times t (n,)."""
        problem = self.problem
        prediction = problem.predict(x, t, problem.label)
        return problem.path.convert(problem.output, prediction, x, t, "velocity")

    def scale(self, x: Points, after: Points) -> Points:
        """(n, ...) the error that is tolerated in each element."""
        return self.tolerance + self.tolerance * jnp.maximum(jnp.abs(x), jnp.abs(after))


def _per_sample(value: Shaped[Array, " n"], like: Points) -> Shaped[Array, "n ..."]:
    """(n,) as (n, 1, ...), which broadcasts against `like` (n, ...)."""
    return value.reshape(value.shape + (1,) * (like.ndim - 1))


def _norm(value: Points, scale: Points) -> PerRecord:
    """(n,) root mean square of value / scale over all axes but the first."""
    return jnp.sqrt(jnp.mean(jnp.square(value / scale), axis=tuple(range(1, value.ndim))))


def _combined(row: tuple[float, ...], slopes: list[Points]) -> Points:
    return functools.reduce(jnp.add, (a * slope for a, slope in zip(row, slopes, strict=True) if a))


# Stages 2 to 7 from those before (each row's sum is its time), then fifth minus fourth order.
_DORMAND_PRINCE: tuple[tuple[float, ...], ...] = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
    (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40),
)
