"""From noise to data: solvers in one compiled loop, with classifier-free guidance.

Steps and guidance are traced numbers, so one compilation serves every setting of an evaluation. The compiled batch has
a fixed size and the last one is padded; sample i starts from noise that depends on (seed, i) alone, and so does the
noise that a stochastic solver adds.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike, NDArray

from flowtrain.checkpoint import TrainedModel
from flowtrain.counter import Purpose, sample_keys
from flowtrain.model import Params, Predict
from flowtrain.objective import make_objective
from flowtrain.path import Path

Prediction = Callable[[jax.Array, jax.Array], jax.Array]  # (x (n, ...), t (n,)) -> (n, ...)


class Problem(NamedTuple):
    """What a solver integrates: a path, a kind of prediction on it (of `flowtrain.path.VIEWS`), and the prediction."""

    path: Path
    output: str
    predict: Prediction


# (problem, x (n, ...), keys (n,), i () int32, steps () int32) -> x after step i.
Advance = Callable[[Problem, jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]


def _euler(problem: Problem, x: jax.Array, keys: jax.Array, i: jax.Array, steps: jax.Array) -> jax.Array:
    """x += dt v: Euler's method in t on the path's own ODE."""
    begin, end = problem.path.grid(i, steps), problem.path.grid(i + 1, steps)
    t = jnp.full(x.shape[:1], begin)
    velocity = problem.path.convert(problem.output, problem.predict(x, t), x, t, "velocity")
    return x + (end - begin) * velocity


def _ddim(
    problem: Problem, x: jax.Array, keys: jax.Array, i: jax.Array, steps: jax.Array, *, eta: float = 0.0
) -> jax.Array:
    """To the next time with both ends as predicted here (Song et al. 2020, arXiv:2010.02502, equation 12).

    With eta = 1 the step draws from the posterior q(x_next | x_t, data): DDPM's ancestral sampling with the smaller of
    its two variances (Ho et al. 2020). On the linear path and with eta = 0 it is Euler's step.
    """
    path = problem.path
    t, after = path.grid(i, steps), path.grid(i + 1, steps)
    time = jnp.full(x.shape[:1], t)
    ends = path.ends(problem.output, problem.predict(x, time), x, time)
    (alpha, sigma), (alpha_after, sigma_after) = path.coefficients(t), path.coefficients(after)
    # Correlation of the noise in x_next and x_t under q: written so that eta = 1 subtracts nothing from a square.
    kept = (alpha / alpha_after) * (sigma_after / sigma)
    x = alpha_after * ends.data + sigma_after * jnp.sqrt(1 - eta**2 + jnp.square(eta * kept)) * ends.noise
    if eta == 0:
        return x
    fresh = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, i), x.shape[1:]))(keys)
    return x + eta * sigma_after * jnp.sqrt(jnp.maximum(1 - jnp.square(kept), 0.0)) * fresh


SOLVERS: dict[str, Advance] = {"euler": _euler, "ddim": _ddim, "ddpm": functools.partial(_ddim, eta=1.0)}


def integrate(solver: str, problem: Problem, noise: jax.Array, keys: jax.Array, steps: jax.Array | int) -> jax.Array:
    """From x at t = 0 to x at t = 1 in `steps` steps.

    Args:
        solver: a name of `SOLVERS`.
        problem: what to integrate.
        noise: (n, ...) float32, x at t = 0.
        keys: (n,) PRNG keys, for solvers that add noise.
        steps: () int, traced or not, at least 1.
    """
    count = jnp.asarray(steps, jnp.int32)
    return jax.lax.fori_loop(0, count, lambda i, x: SOLVERS[solver](problem, x, keys, i, count), noise)


def guide(conditional: jax.Array, unconditional: jax.Array, weight: jax.Array, channels: int | None) -> jax.Array:
    """v_u + w (v_c - v_u), on all channels, or on the first `channels` with v_c on the rest (DiT and SiT use 3).

    Classifier-free guidance, Ho & Salimans 2022 (arXiv:2207.12598), in the convention where w = 1 is no guidance. The
    same for every kind of prediction, since they follow from each other by affine maps.
    """
    guided = unconditional + weight * (conditional - unconditional)
    if channels is None:
        return guided
    return jnp.concatenate([guided[..., :channels], conditional[..., channels:]], axis=-1)


@functools.partial(jax.jit, static_argnames=("shape",))
def initial_noise(key: jax.Array, indices: jax.Array, shape: tuple[int, int, int]) -> jax.Array:
    """Standard normal (n, h, w, c) float32; row i is a function of (key, indices[i]) alone."""
    return jax.vmap(lambda k: jax.random.normal(k, shape))(sample_keys(key, Purpose.SAMPLE_NOISE, indices))


@jax.jit
def _solver_keys(key: jax.Array, indices: jax.Array) -> jax.Array:
    """(n,) keys of what a solver adds; key i is a function of (key, indices[i]) alone."""
    return sample_keys(key, Purpose.SOLVER_NOISE, indices)


class Method(NamedTuple):
    """What a compiled sampler is specialised to. Hashable."""

    predict: Predict
    path: Path
    output: str
    solver: str


@functools.partial(jax.jit, static_argnames=("method",))
def _integrate(
    method: Method, params: Params, noise: jax.Array, keys: jax.Array, label: jax.Array, steps: jax.Array
) -> jax.Array:
    def predict(x: jax.Array, t: jax.Array) -> jax.Array:
        return method.predict(params, x, t, label)

    return integrate(method.solver, Problem(method.path, method.output, predict), noise, keys, steps)


@functools.partial(jax.jit, static_argnames=("method", "null_class", "channels"))
def _integrate_guided(
    method: Method,
    params: Params,
    noise: jax.Array,
    keys: jax.Array,
    label: jax.Array,
    steps: jax.Array,
    weight: jax.Array,
    null_class: int,
    channels: int | None,
) -> jax.Array:
    both = jnp.concatenate([label, jnp.full_like(label, null_class)])

    def guided(x: jax.Array, t: jax.Array) -> jax.Array:
        prediction = method.predict(params, jnp.concatenate([x, x]), jnp.concatenate([t, t]), both)
        conditional, unconditional = jnp.split(prediction, 2)
        return guide(conditional, unconditional, weight, channels)

    return integrate(method.solver, Problem(method.path, method.output, guided), noise, keys, steps)


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
    solver: str | None = None,
) -> NDArray[np.float32]:
    """Draw one sample for each (label, index).

    Args:
        trained: from `load_for_sampling`.
        labels: (n,) class numbers; `trained.null_class` asks for an unconditional sample.
        indices: (n,) numbers of the samples: sample i is a function of (seed, i, label), not of its neighbours.
        seed: of the initial noise, and of what a stochastic solver adds.
        steps: of the solver; network evaluations are `steps`, twice that when guided.
        cfg: guidance weight; 1 is none, and then the unconditional half is not computed.
        cfg_channels: guide only the first channels (see `guide`).
        batch_size: of the compiled function; the last batch is padded.
        solver: a name of `SOLVERS` that goes with the run's objective (`schemas.config.choose_solver`); default: the
            recipe's.

    Returns:
        (n, h, w, c) float32 in the model's scale.
    """
    label, index = np.asarray(labels, np.int32), np.asarray(indices, np.int32)
    key, shape, samples = jax.random.key(seed), trained.run.latent_shape, []
    recipe = trained.run.recipe
    path, solver = make_objective(recipe.objective).path, solver or recipe.sampler.solver
    method = Method(trained.predict, path, recipe.model.output, solver)
    for begin in range(0, len(label), batch_size):
        part = slice(begin, begin + batch_size)
        real = len(label[part])
        padded_label, padded_index = (
            np.pad(array[part], (0, batch_size - real), mode="edge") for array in (label, index)
        )
        noise, keys = initial_noise(key, padded_index, shape), _solver_keys(key, padded_index)
        count = jnp.int32(steps)
        if cfg == 1:
            x = _integrate(method, trained.params, noise, keys, padded_label, count)
        else:
            weight = jnp.float32(cfg)
            x = _integrate_guided(
                method, trained.params, noise, keys, padded_label, count, weight, trained.null_class, cfg_channels
            )
        samples.append(np.asarray(x)[:real])
    return np.concatenate(samples) if samples else np.zeros((0, *shape), np.float32)
