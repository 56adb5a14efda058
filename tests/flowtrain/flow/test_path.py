"""Both paths against autodiff, a float64 table and the closed form of a Gaussian; views as inverse
pairs.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowtrain.flow.path import VIEWS, Ends, LinearPath, Path, VariancePreservingPath, squared_error

LINEAR, VP = LinearPath(), VariancePreservingPath()
PATHS = pytest.mark.parametrize("path", [LINEAR, VP], ids=["linear", "variance_preserving"])
coefficients = jax.jit(VP.coefficients)
TIMES = jnp.array([0.1, 0.3, 0.51234, 0.7, 0.9])  # one of them between levels


def alphas_cumprod(levels: int = 1000, first: float = 1e-4, last: float = 0.02) -> np.ndarray:
    """(levels + 1,) float64: alpha^2 by level, as DDPM writes it down."""
    product = [1.0]
    for beta in np.linspace(first, last, levels):
        product.append(product[-1] * (1 - beta))
    return np.array(product)


@pytest.fixture
def ends() -> Ends:
    return Ends(*jax.random.normal(jax.random.key(0), (2, 5, 3, 3, 2)))


@PATHS
def test_data_at_1_exactly_and_noise_at_0(path: Path, ends: Ends):
    np.testing.assert_array_equal(path.interpolate(*ends, jnp.ones(5)), ends.data)
    alpha, sigma = path.coefficients(jnp.array([0.0, 1.0]))
    assert (float(alpha[1]), float(sigma[1])) == (1, 0)
    assert not np.signbit(sigma[1])  # or what is divided by it would have the wrong sign
    assert (
        float(alpha[0])
        == {LINEAR: 0, VP: pytest.approx(alphas_cumprod()[-1] ** 0.5, rel=1e-6)}[path]
    )
    if path == LINEAR:
        np.testing.assert_array_equal(path.interpolate(*ends, jnp.zeros(5)), ends.noise)


@PATHS
def test_velocity_is_the_derivative_of_the_path(path: Path, ends: Ends):
    _, derivative = jax.jvp(lambda t: path.interpolate(*ends, t), (TIMES,), (jnp.ones(5),))
    np.testing.assert_allclose(path.velocity(*ends, TIMES), derivative, atol=2e-5)


@PATHS
@pytest.mark.parametrize("to", VIEWS)
@pytest.mark.parametrize("kind", VIEWS)
def test_each_view_gives_every_other_one_and_both_ends(path: Path, ends: Ends, kind: str, to: str):
    x = path.interpolate(*ends, TIMES)
    prediction, expected = path.view(kind, ends, TIMES), path.view(to, ends, TIMES)
    np.testing.assert_allclose(path.convert(kind, prediction, x, TIMES, to), expected, atol=2e-4)
    for found, true in zip(path.ends(kind, prediction, x, TIMES), ends, strict=True):
        np.testing.assert_allclose(found, true, atol=1e-4)


def test_views_are_what_their_names_say(ends: Ends):
    at = TIMES.reshape(5, 1, 1, 1)
    expected = {
        "velocity": ends.data - ends.noise,
        "negative_velocity": ends.noise - ends.data,
        "epsilon": ends.noise,
        "data": ends.data,
        "score": -ends.noise / (1 - at),
    }
    assert expected.keys() == VIEWS.keys()
    for kind, value in expected.items():
        np.testing.assert_allclose(LINEAR.view(kind, ends, TIMES), value, rtol=1e-6)
    _, sigma = VP.coefficients(TIMES)
    np.testing.assert_allclose(
        VP.view("score", ends, TIMES), -ends.noise / sigma.reshape(5, 1, 1, 1), rtol=1e-6
    )


@PATHS
def test_score_of_a_gaussian_is_the_known_one(path: Path):
    """Data N(2, 0.5^2): the velocity is the regression of d x_t / dt on x_t, the score that of a
    normal density.
    """
    mean, deviation, t = 2.0, 0.5, jnp.full(7, 0.6)
    (alpha, sigma), (d_alpha, d_sigma) = (
        [float(value[0]) for value in pair] for pair in (path.coefficients(t), path.derivatives(t))
    )
    x = jnp.linspace(-2, 4, 7).reshape(7, 1)
    residual = (x - alpha * mean) / (alpha**2 * deviation**2 + sigma**2)
    velocity = d_alpha * mean + (d_alpha * alpha * deviation**2 + d_sigma * sigma) * residual
    np.testing.assert_allclose(
        path.convert("velocity", velocity, x, t, "score"), -residual, atol=2e-5
    )


def test_levels_are_those_of_ddpm():
    t = (1 - np.arange(1001) / 1000).astype(np.float32)
    alpha, sigma = (np.asarray(value, np.float64) for value in coefficients(t))
    product = alphas_cumprod()
    np.testing.assert_allclose(alpha, np.sqrt(product), rtol=0, atol=3e-7)
    np.testing.assert_allclose(sigma, np.sqrt(1 - product), rtol=0, atol=3e-7)
    # at level 1 it is 0.01
    np.testing.assert_allclose(sigma[1:], np.sqrt(1 - product[1:]), rtol=2e-5)
    np.testing.assert_allclose(alpha, np.sqrt(product), rtol=1e-6)  # at level 1000 it is 0.006
    assert (np.diff(alpha) < 0).all()


def test_variance_is_preserved_between_levels_too():
    alpha, sigma = (
        np.float64(value)
        for value in coefficients(np.linspace(0, 1, 1001, dtype=np.float32) ** 0.7)
    )
    np.testing.assert_allclose(alpha**2 + sigma**2, 1, atol=3e-7)
    assert (np.diff(alpha) > 0).all()
    # log alpha is linear from level to level: halfway it is the geometric mean.
    product = alphas_cumprod()
    # the last one is out of range
    halfway, _ = coefficients(np.float32(1 - (np.arange(1001) + 0.5) / 1000))
    np.testing.assert_allclose(halfway[:-1], (product[1:] * product[:-1]) ** 0.25, rtol=2e-6)


def test_the_linear_grid_is_even_and_ends_at_1():
    grid = grids(LINEAR)
    for steps in (1, 3, 41, 1000):  # in float32, 41 * (1 / 41) is not 1
        times = grid(steps)
        np.testing.assert_allclose(times, np.arange(steps + 1) / steps, atol=2e-7)
        assert (times[0], times[-1]) == (0, 1)


def test_the_grid_of_levels_is_trailing_and_rounds_halves_to_even():
    grid = grids(VP)
    # 400 steps are 2.5 levels each, so every second one is rounded
    for steps in (
        1,
        7,
        10,
        50,
        400,
        1000,
    ):
        times = grid(steps)
        level = (1 - np.float64(times)) * 1000
        np.testing.assert_allclose(
            level, np.round(1000 - np.arange(steps + 1) * 1000 / steps), atol=1e-4
        )
        assert times[-1] == 1


def grids(path: Path) -> Callable[[int], np.ndarray]:
    """All times of a number of steps, at most 1000, by one compiled function."""
    compiled = jax.jit(jax.vmap(path.grid, (0, None)))
    return lambda steps: np.asarray(compiled(jnp.arange(1001), jnp.int32(steps)))[: steps + 1]


def test_paths_are_keys_of_a_compilation_cache():
    assert hash(VariancePreservingPath()) == hash(VP)
    assert (
        len(
            {LINEAR, LinearPath(), VP, VariancePreservingPath(), VariancePreservingPath(levels=500)}
        )
        == 3
    )


def test_squared_error_is_a_mean_for_each_sample():
    prediction, target = jnp.ones((2, 3, 3, 1)), jnp.zeros((2, 3, 3, 1)).at[1].set(3.0)
    np.testing.assert_allclose(squared_error(prediction, target), [1.0, 4.0])
    assert squared_error(prediction.astype(jnp.bfloat16), target).dtype == jnp.float32
