"""Solvers against closed forms, their orders of convergence, and the marginals of stochastic
ones.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

from flowtrain.flow.path import LinearPath, Path, VariancePreservingPath
from flowtrain.flow.solvers import DIFFUSIONS, STEPPERS, Problem, integrate, shifted
from schemas.config import SOLVERS
from schemas.solvers import ADAPTIVE, EVALUATIONS
from tests.flowtrain.gaussians import (
    DEVIATION,
    MEAN,
    gaussian_steps,
    perfect_epsilon,
    perfect_velocity,
)

LINEAR, VP = LinearPath(), VariancePreservingPath()


def _solve(
    solver: str,
    path: Path,
    output: str,
    predict: Callable[..., jax.Array],
    noise: jax.Array,
    shift: float = 1.0,
) -> Callable[[int], jax.Array]:
    """x at t = 1 after a number of steps, by one compiled function."""
    keys, label = jax.random.split(jax.random.key(1), len(noise)), jnp.zeros(len(noise), jnp.int32)
    problem = Problem(path, output, lambda x, t, label: predict(x, t), label, shift)
    return jax.jit(lambda steps: integrate(solver, problem, noise, keys, steps).x)


def _bent(x: jax.Array, t: jax.Array) -> jax.Array:
    """A prediction that depends on x and t in no simple way."""
    return jnp.sin(3 * x + t[:, None]) - 0.4 * x * t[:, None]


NOISE = jnp.asarray(np.random.default_rng(0).standard_normal((4, 6)), jnp.float32)


def test_euler_of_a_linear_field_is_a_power():
    solve = _solve("euler", LINEAR, "velocity", lambda x, t: -0.7 * x, NOISE)
    for steps in (1, 4, 50):
        np.testing.assert_allclose(solve(steps), NOISE * (1 - 0.7 / steps) ** steps, rtol=1e-5)


def test_euler_evaluates_the_velocity_at_the_left_ends():
    solve = _solve(
        "euler", LINEAR, "velocity", lambda x, t: jnp.broadcast_to(t[:, None], x.shape), 0 * NOISE
    )
    np.testing.assert_allclose(solve(4), np.full((4, 6), (0 + 0.25 + 0.5 + 0.75) / 4))


def test_what_the_network_predicts_does_not_change_where_euler_goes():
    """The same field, given as velocity, as its negative and as data."""
    expected = _solve("euler", LINEAR, "velocity", _bent, NOISE)(7)
    negative = _solve("euler", LINEAR, "negative_velocity", lambda x, t: -_bent(x, t), NOISE)
    np.testing.assert_allclose(negative(7), expected, atol=1e-6)
    data = _solve("euler", LINEAR, "data", lambda x, t: x + (1 - t[:, None]) * _bent(x, t), NOISE)
    np.testing.assert_allclose(data(7), expected, atol=1e-5)


def test_ddim_on_the_linear_path_is_euler():
    euler, ddim = (_solve(solver, LINEAR, "velocity", _bent, NOISE) for solver in ("euler", "ddim"))
    for steps in (1, 7, 50):
        np.testing.assert_allclose(ddim(steps), euler(steps), atol=1e-5)


@pytest.mark.parametrize(
    ("path", "solver"), [(LINEAR, "ddim"), (LINEAR, "ddpm"), (VP, "ddim"), (VP, "ddpm")]
)
def test_the_last_step_gives_the_predicted_data_and_adds_no_noise(path: Path, solver: str):
    solve = _solve(solver, path, "data", lambda x, t: jnp.full_like(x, 0.3), NOISE)
    for steps in (1, 3, 41):
        np.testing.assert_array_equal(solve(steps), np.full((4, 6), 0.3, np.float32))


def test_the_first_ancestral_step_of_a_flow_forgets_where_it_began():
    """alpha = 0 there, so the posterior does not depend on x: a difference of squares would keep
    1e-4 of it.
    """
    keys = jax.random.split(jax.random.key(1), 4)
    problem = Problem(
        LINEAR, "data", lambda x, t, label: jnp.full_like(x, 0.3), jnp.zeros(4, jnp.int32)
    )
    first = jax.jit(lambda x, steps: STEPPERS["ddpm"](problem, x, keys, jnp.int32(0), steps))
    for steps in range(1, 200):
        np.testing.assert_allclose(
            first(NOISE, jnp.int32(steps)), first(0 * NOISE, jnp.int32(steps)), atol=1e-6
        )


def test_ddim_with_a_perfect_epsilon_of_a_gaussian():
    solve = _solve("ddim", VP, "epsilon", lambda x, t: perfect_epsilon(x, t), NOISE)
    for steps in (1, 2, 10, 50, 1000):
        weight, _, alpha = gaussian_steps(steps, eta=0.0)
        # float32, 1000 steps
        np.testing.assert_allclose(solve(steps), MEAN + weight * (NOISE - alpha * MEAN), atol=5e-5)
    # With many steps it is the probability flow, which maps the normal law at t = 0 onto that of
    # the data.
    np.testing.assert_allclose(
        weight, DEVIATION / np.sqrt(alpha**2 * DEVIATION**2 + 1 - alpha**2), rtol=1e-2
    )


def test_every_solver_that_a_recipe_may_name_is_there():
    assert {name for names in SOLVERS.values() for name in names} == {*STEPPERS, ADAPTIVE}
    assert EVALUATIONS.keys() == STEPPERS.keys()


@pytest.mark.parametrize(
    ("solver", "order"), [("euler", 1), ("heun", 2), ("midpoint", 2), ("rk4", 4)]
)
def test_order_of_convergence(solver: str, order: int):
    """Twice the steps, an error 2^order smaller; against NumPy's float64 with very many steps."""
    x, count = np.asarray(NOISE, np.float64), 4000
    for i in range(count):  # the midpoint rule, 1e-8 off
        slope = np.sin(3 * x + i / count) - 0.4 * x * i / count
        half, t = x + slope / (2 * count), (i + 0.5) / count
        x = x + (np.sin(3 * half + t) - 0.4 * half * t) / count
    solve = _solve(solver, LINEAR, "velocity", _bent, NOISE)
    few = 4 if solver == "rk4" else 16  # so that float32 does not blur it
    errors = [float(np.abs(np.asarray(solve(steps)) - x).mean()) for steps in (few, 2 * few)]
    assert errors[0] / errors[1] == pytest.approx(2**order, rel=0.25)


def test_network_evaluations_are_counted():
    """Against a counter in the prediction itself."""
    for solver, expected in {**EVALUATIONS, ADAPTIVE: None}.items():
        calls = []

        def predict(
            x: jax.Array, t: jax.Array, label: jax.Array, calls: list[int] = calls
        ) -> jax.Array:
            jax.debug.callback(lambda: calls.append(1))
            return _bent(x, t)

        problem = Problem(LINEAR, "velocity", predict, jnp.zeros(1, jnp.int32))
        solution = integrate(solver, problem, NOISE[:1], jax.random.split(jax.random.key(0), 1), 3)
        jax.block_until_ready(solution)
        jax.effects_barrier()
        assert int(solution.evaluations[0]) == len(calls), solver
        assert len(calls) == 3 * expected if expected else len(calls) > 10


def test_dopri5_is_scipys_and_solves_each_sample_alone():
    """SciPy's RK45 takes the same pair with the same control, in float64."""

    def solve(noise: jax.Array, tolerance: float) -> tuple[np.ndarray, np.ndarray]:
        problem = Problem(
            LINEAR,
            "velocity",
            lambda x, t, label: 5 * _bent(x, t),
            jnp.zeros(len(noise), jnp.int32),
        )
        keys = jax.random.split(jax.random.key(0), len(noise))  # draws nothing
        solution = jax.jit(lambda x: integrate(ADAPTIVE, problem, x, keys, 1, tolerance))(noise)
        return np.asarray(solution.x), np.asarray(solution.evaluations)

    def scipys(noise: np.ndarray, tolerance: float) -> tuple[np.ndarray, int]:
        def slope(t: float, x: np.ndarray) -> np.ndarray:
            return 5 * (np.sin(3 * x + t) - 0.4 * x * t)

        solution = solve_ivp(
            slope, (0, 1), noise.astype(np.float64), rtol=tolerance, atol=tolerance
        )
        return solution.y[:, -1], solution.nfev

    for tolerance, most in ((1e-2, 1e-3), (1e-4, 1e-5)):
        x, evaluations = solve(NOISE, tolerance)
        for row, noise in enumerate(np.asarray(NOISE)):
            expected, nfev = scipys(noise, tolerance)
            np.testing.assert_allclose(x[row], expected, atol=most)
            assert evaluations[row] == nfev
        assert len({*evaluations.tolist()}) > 1  # each its own steps
    alone, count = solve(NOISE[2:3], 1e-4)
    np.testing.assert_allclose(alone[0], x[2], rtol=1e-6)
    assert count[0] == evaluations[2]


def test_dopri5_that_does_not_end_is_not_finite(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("flowtrain.flow.solvers.MOST_ADAPTIVE_STEPS", 4)
    problem = Problem(
        LINEAR, "velocity", lambda x, t, label: jnp.sin(100 * x), jnp.zeros(4, jnp.int32)
    )
    assert jnp.isnan(
        integrate(ADAPTIVE, problem, NOISE, jax.random.split(jax.random.key(0), 4), 1).x
    ).all()


@pytest.mark.parametrize("diffusion", DIFFUSIONS)
def test_sde_of_a_gaussian_has_its_moments(diffusion: str):
    """Any w(t) leaves the marginals alone; wrong if the score, its sign or the size of the noise
    were.
    """
    noise = jax.random.normal(jax.random.key(3), (4000, 8))
    name = "sde" if diffusion == "sigma" else f"sde-{diffusion}"
    x = np.asarray(
        _solve(name, LINEAR, "velocity", lambda x, t: perfect_velocity(x, t), noise)(400)
    )
    # steps of 1/400; the estimate itself is good to 0.003
    assert x.mean() == pytest.approx(MEAN, abs=0.015)
    assert x.std() == pytest.approx(DEVIATION, abs=0.015)
    kept = np.corrcoef(x.ravel(), np.asarray(noise).ravel())[0, 1]
    assert kept < 0.9  # an ODE would keep all: 1


def test_sde_takes_the_last_step_without_noise():
    solve = _solve("sde", LINEAR, "data", lambda x, t: jnp.full_like(x, 0.3), NOISE)
    for steps in (1, 2, 30):
        stop = 1 - min(0.04, 1 / steps)
        # v = (d - x) / (1 - t) and s = (t d - x) / (1 - t)^2 with w = 1 - t: x + (1 - t)(v + w s) =
        # (1 + t) d - x
        if steps == 1:
            np.testing.assert_allclose(solve(1), 0.3 - NOISE, atol=1e-6)
        assert float(jnp.std(solve(steps))) < 2.5 * (1 - stop) + (2 if steps < 3 else 0)


def test_shift_moves_steps_towards_noise_and_keeps_the_ends():
    t = jnp.linspace(0, 1, 11)
    np.testing.assert_array_equal(shifted(t, 1.0), t)
    np.testing.assert_allclose(shifted(t, 3.0), 1 - 3 * (1 - t) / (1 + 2 * (1 - t)), rtol=1e-6)
    assert (shifted(t, 3.0)[1:-1] < t[1:-1]).all()
    np.testing.assert_array_equal(shifted(t, 3.0)[jnp.array([0, -1])], jnp.array([0.0, 1.0]))
    np.testing.assert_allclose(shifted(shifted(t, 3.0), 1 / 3), t, atol=1e-6)
    solve = _solve(
        "euler",
        LINEAR,
        "velocity",
        lambda x, t: jnp.broadcast_to(t[:, None], x.shape),
        0 * NOISE,
        3.0,
    )
    grid = np.asarray(shifted(jnp.linspace(0, 1, 5), 3.0))
    np.testing.assert_allclose(
        solve(4), np.full((4, 6), np.sum(np.diff(grid) * grid[:-1])), rtol=1e-5
    )
