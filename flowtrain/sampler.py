"""From noise to data: Euler's method along the velocity field, with classifier-free guidance.

Steps and guidance are traced numbers, so one compilation serves every setting of an evaluation. The compiled batch has
a fixed size and the last one is padded; sample i starts from noise that depends on (seed, i) alone.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike, NDArray

from flowtrain.checkpoint import TrainedModel
from flowtrain.counter import Purpose, sample_keys
from flowtrain.model import Params, Velocity


def euler(velocity: Callable[[jax.Array, jax.Array], jax.Array], noise: jax.Array, steps: jax.Array | int) -> jax.Array:
    """Integrate dx/dt = velocity(x, t) from t = 0 to 1 in `steps` equal steps: x += v / steps.

    Args:
        velocity: (x (n, ...), t (n,)) -> (n, ...).
        noise: (n, ...) float32, x at t = 0.
        steps: () int, traced or not, at least 1.
    """
    count = jnp.asarray(steps, jnp.int32)
    size = 1.0 / count.astype(jnp.float32)

    def advance(i: jax.Array, x: jax.Array) -> jax.Array:
        t = jnp.full(x.shape[:1], i.astype(jnp.float32) * size)
        return x + size * velocity(x, t)

    return jax.lax.fori_loop(0, count, advance, noise)


def guide(conditional: jax.Array, unconditional: jax.Array, weight: jax.Array, channels: int | None) -> jax.Array:
    """v_u + w (v_c - v_u), on all channels, or on the first `channels` with v_c on the rest (DiT and SiT use 3).

    Classifier-free guidance, Ho & Salimans 2022 (arXiv:2207.12598), in the convention where w = 1 is no guidance.
    """
    guided = unconditional + weight * (conditional - unconditional)
    if channels is None:
        return guided
    return jnp.concatenate([guided[..., :channels], conditional[..., channels:]], axis=-1)


@functools.partial(jax.jit, static_argnames=("shape",))
def initial_noise(key: jax.Array, indices: jax.Array, shape: tuple[int, int, int]) -> jax.Array:
    """Standard normal (n, h, w, c) float32; row i is a function of (key, indices[i]) alone."""
    return jax.vmap(lambda k: jax.random.normal(k, shape))(sample_keys(key, Purpose.SAMPLE_NOISE, indices))


@functools.partial(jax.jit, static_argnames=("velocity",))
def _integrate(velocity: Velocity, params: Params, noise: jax.Array, label: jax.Array, steps: jax.Array) -> jax.Array:
    return euler(lambda x, t: velocity(params, x, t, label), noise, steps)


@functools.partial(jax.jit, static_argnames=("velocity", "null_class", "channels"))
def _integrate_guided(
    velocity: Velocity,
    params: Params,
    noise: jax.Array,
    label: jax.Array,
    steps: jax.Array,
    weight: jax.Array,
    null_class: int,
    channels: int | None,
) -> jax.Array:
    both = jnp.concatenate([label, jnp.full_like(label, null_class)])

    def guided(x: jax.Array, t: jax.Array) -> jax.Array:
        v = velocity(params, jnp.concatenate([x, x]), jnp.concatenate([t, t]), both)
        conditional, unconditional = jnp.split(v, 2)
        return guide(conditional, unconditional, weight, channels)

    return euler(guided, noise, steps)


def sample(
    trained: TrainedModel,
    labels: ArrayLike,
    indices: ArrayLike,
    *,
    seed: int,
    steps: int,
    cfg: float,
    cfg_channels: int | None = None,
    batch_size: int = 64,
) -> NDArray[np.float32]:
    """Draw one sample for each (label, index).

    Args:
        trained: from `load_for_sampling`.
        labels: (n,) class numbers; `trained.null_class` asks for an unconditional sample.
        indices: (n,) numbers of the samples: sample i is a function of (seed, i, label), not of its neighbours.
        seed: of the initial noise.
        steps: Euler steps; network evaluations are `steps`, twice that when guided.
        cfg: guidance weight; 1 is none, and then the unconditional half is not computed.
        cfg_channels: guide only the first channels (see `guide`).
        batch_size: of the compiled function; the last batch is padded.

    Returns:
        (n, h, w, c) float32 in the model's scale.
    """
    label, index = np.asarray(labels, np.int32), np.asarray(indices, np.int32)
    key, shape, samples = jax.random.key(seed), trained.run.latent_shape, []
    for begin in range(0, len(label), batch_size):
        part = slice(begin, begin + batch_size)
        real = len(label[part])
        padded_label, padded_index = (
            np.pad(array[part], (0, batch_size - real), mode="edge") for array in (label, index)
        )
        noise, count = initial_noise(key, padded_index, shape), jnp.int32(steps)
        if cfg == 1:
            x = _integrate(trained.velocity, trained.params, noise, padded_label, count)
        else:
            weight = jnp.float32(cfg)
            x = _integrate_guided(
                trained.velocity, trained.params, noise, padded_label, count, weight, trained.null_class, cfg_channels
            )
        samples.append(np.asarray(x)[:real])
    return np.concatenate(samples) if samples else np.zeros((0, *shape), np.float32)
