"""The path's conversions as inverse pairs, and against the closed form of a Gaussian."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowtrain.path import LinearPath, squared_error

PATH = LinearPath()


@pytest.fixture
def point() -> dict[str, jax.Array]:
    noise, data = jax.random.normal(jax.random.key(0), (2, 5, 3, 3, 2))
    t = jnp.array([0.1, 0.3, 0.5, 0.7, 0.9])
    return {
        "noise": noise,
        "data": data,
        "t": t,
        "x": PATH.interpolate(noise, data, t),
        "v": PATH.velocity(noise, data),
    }


def test_noise_at_0_and_data_at_1(point: dict[str, jax.Array]):
    noise, data = point["noise"], point["data"]
    np.testing.assert_array_equal(PATH.interpolate(noise, data, jnp.zeros(5)), noise)
    np.testing.assert_array_equal(PATH.interpolate(noise, data, jnp.ones(5)), data)


def test_velocity_is_the_derivative_of_the_path(point: dict[str, jax.Array]):
    _, derivative = jax.jvp(lambda t: PATH.interpolate(point["noise"], point["data"], t), (point["t"],), (jnp.ones(5),))
    np.testing.assert_allclose(derivative, point["v"], atol=1e-6)


def test_velocity_gives_back_both_ends(point: dict[str, jax.Array]):
    np.testing.assert_allclose(PATH.data_from_velocity(point["v"], point["x"], point["t"]), point["data"], atol=1e-5)
    np.testing.assert_allclose(PATH.noise_from_velocity(point["v"], point["x"], point["t"]), point["noise"], atol=1e-5)


@pytest.mark.parametrize("view", ["data", "noise", "score"])
def test_conversions_are_inverse_pairs(point: dict[str, jax.Array], view: str):
    there = getattr(PATH, f"{view}_from_velocity")(point["v"], point["x"], point["t"])
    back = getattr(PATH, f"velocity_from_{view}")(there, point["x"], point["t"])
    np.testing.assert_allclose(back, point["v"], atol=1e-4)


def test_score_of_a_gaussian_is_the_known_one():
    mean, deviation, t = 2.0, 0.5, 0.6
    x = jnp.linspace(-2, 4, 7).reshape(7, 1)
    variance = (1 - t) ** 2 + t**2 * deviation**2  # of x_t, whose mean is t * mean
    residual = (x - t * mean) / variance
    velocity = (mean + t * deviation**2 * residual) - (1 - t) * residual  # E[x_1 - x_0 | x_t], by regression
    score = PATH.score_from_velocity(velocity, x, jnp.full(7, t))
    np.testing.assert_allclose(score, -residual, atol=1e-5)


def test_squared_error_is_a_mean_for_each_sample():
    prediction, target = jnp.ones((2, 3, 3, 1)), jnp.zeros((2, 3, 3, 1)).at[1].set(3.0)
    np.testing.assert_allclose(squared_error(prediction, target), [1.0, 4.0])
