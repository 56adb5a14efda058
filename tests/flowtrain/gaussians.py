"""Data that are normal, MEAN and DEVIATION: what a perfect network would say of them, and where
solvers take it.
"""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np

from flowtrain.flow.path import LinearPath, VariancePreservingPath

MEAN, DEVIATION = 0.7, 0.5
VP, LINEAR = VariancePreservingPath(), LinearPath()


def _perfect_noise(
    path: VariancePreservingPath | LinearPath, x: jax.Array, t: jax.Array
) -> jax.Array:
    """E[noise | x]."""
    alpha, sigma = (
        value.reshape(value.shape + (1,) * (x.ndim - 1)) for value in path.coefficients(t)
    )
    return sigma * (x - alpha * MEAN) / (jnp.square(alpha * DEVIATION) + jnp.square(sigma))


def perfect_epsilon(x: jax.Array, t: jax.Array) -> jax.Array:
    """On the variance-preserving path."""
    return _perfect_noise(VP, x, t)


def perfect_velocity(x: jax.Array, t: jax.Array) -> jax.Array:
    """On the linear path: E[data | x] - E[noise | x]."""
    alpha, sigma = (
        value.reshape(value.shape + (1,) * (x.ndim - 1)) for value in LINEAR.coefficients(t)
    )
    variance = jnp.square(alpha * DEVIATION) + jnp.square(sigma)
    data = MEAN + alpha * DEVIATION**2 * (x - alpha * MEAN) / variance
    return data - _perfect_noise(LINEAR, x, t)


def gaussian_steps(steps: int, eta: float) -> tuple[float, float, float]:
    """Of x - alpha MEAN: its start's weight in the end, the variance added on the way, alpha at the
    start; float64.

    By DDIM's equation 12 and the variance of its equation 16, with the betas of DDPM.
    """
    product = np.cumprod(np.append(1.0, 1 - np.linspace(1e-4, 0.02, 1000)))
    levels = np.rint(1000 * (1 - np.arange(steps + 1) / steps)).astype(int)
    weight, added = 1.0, 0.0
    for now, after in pairwise(levels):
        total = product[now] * DEVIATION**2 + 1 - product[now]
        variance = (
            eta**2 * (1 - product[after]) / (1 - product[now]) * (1 - product[now] / product[after])
        )
        clean = np.sqrt(product[now]) * DEVIATION**2 / total
        noise = np.sqrt(1 - product[now]) / total
        factor = np.sqrt(product[after]) * clean + np.sqrt(1 - product[after] - variance) * noise
        weight, added = factor * weight, factor**2 * added + variance
    return float(weight), float(added), float(np.sqrt(product[-1]))
