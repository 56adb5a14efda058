"""The linear path between noise and data, and what can be known from a velocity on it.

Time runs from noise at t = 0 to data at t = 1: x_t = (1 - t) x_0 + t x_1 with x_0 ~ N(0, I), so that the velocity is
x_1 - x_0 (Lipman et al. 2022, arXiv:2210.02747; Liu et al. 2022, arXiv:2209.03003). With the velocity and x_t known,
the other views of the same prediction follow by solving two linear equations; each has its inverse here.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp


def _per_sample(t: jax.Array, like: jax.Array) -> jax.Array:
    return t.reshape(t.shape + (1,) * (like.ndim - t.ndim))


@dataclass(frozen=True)
class LinearPath:
    """x_t = (1 - t) noise + t data. Arrays are (n, ...) and t is (n,) in [0, 1], all float32."""

    def interpolate(self, noise: jax.Array, data: jax.Array, t: jax.Array) -> jax.Array:
        """The point x_t on the path."""
        t = _per_sample(t, data)
        return (1 - t) * noise + t * data

    def velocity(self, noise: jax.Array, data: jax.Array) -> jax.Array:
        """The regression target d x_t / dt, which does not depend on t."""
        return data - noise

    def data_from_velocity(self, velocity: jax.Array, x: jax.Array, t: jax.Array) -> jax.Array:
        """x_1 = x_t + (1 - t) v."""
        return x + (1 - _per_sample(t, x)) * velocity

    def velocity_from_data(self, data: jax.Array, x: jax.Array, t: jax.Array) -> jax.Array:
        """v = (x_1 - x_t) / (1 - t); singular at t = 1."""
        return (data - x) / (1 - _per_sample(t, x))

    def noise_from_velocity(self, velocity: jax.Array, x: jax.Array, t: jax.Array) -> jax.Array:
        """x_0 = x_t - t v."""
        return x - _per_sample(t, x) * velocity

    def velocity_from_noise(self, noise: jax.Array, x: jax.Array, t: jax.Array) -> jax.Array:
        """v = (x_t - x_0) / t; singular at t = 0."""
        return (x - noise) / _per_sample(t, x)

    def score_from_velocity(self, velocity: jax.Array, x: jax.Array, t: jax.Array) -> jax.Array:
        """Gradient of log p_t at x_t: -E[x_0 | x_t] / (1 - t) (Tweedie); singular at t = 1."""
        return -self.noise_from_velocity(velocity, x, t) / (1 - _per_sample(t, x))

    def velocity_from_score(self, score: jax.Array, x: jax.Array, t: jax.Array) -> jax.Array:
        """The inverse of `score_from_velocity`; singular at t = 0."""
        return self.velocity_from_noise(-(1 - _per_sample(t, x)) * score, x, t)


def squared_error(prediction: jax.Array, target: jax.Array) -> jax.Array:
    """Mean over all but the first axis, in float32: (n, ...) -> (n,)."""
    error = jnp.square(prediction.astype(jnp.float32) - target.astype(jnp.float32))
    return jnp.mean(error, axis=tuple(range(1, error.ndim)))
