"""From a trained model to samples: guidance around a solver, in one compiled function, on all local
devices.

Steps, guidance and its interval are traced numbers, so one compilation serves every setting of an
evaluation. The compiled batch has a fixed size and the last one is padded; sample i starts from
noise that depends on (seed, i) alone, and so does the noise that a stochastic solver adds.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from numpy.typing import ArrayLike, NDArray

from flowtrain.flow.objective import make_objective
from flowtrain.flow.path import Path
from flowtrain.flow.solvers import STEPPERS, Prediction, Problem, Solution, integrate
from flowtrain.model import Params, Predict
from flowtrain.records.counter import Purpose, sample_keys
from flowtrain.state.checkpoint import TrainedModel
from schemas.solvers import EVERYWHERE


def guide(
    conditional: jax.Array, unconditional: jax.Array, weight: jax.Array, channels: int | None
) -> jax.Array:
    """v_u + w (v_c - v_u), on all channels, or on the first `channels` with v_c on the rest (DiT
    and SiT use 3).

    Classifier-free guidance, Ho & Salimans 2022 (arXiv:2207.12598), in the convention where w = 1
    is no guidance. The same for every kind of prediction, since they follow from each other by
    affine maps.
    """
    guided = unconditional + weight * (conditional - unconditional)
    if channels is None:
        return guided
    return jnp.concatenate([guided[..., :channels], conditional[..., channels:]], axis=-1)


@functools.partial(jax.jit, static_argnames=("shape",))
def initial_noise(key: jax.Array, indices: jax.Array, shape: tuple[int, int, int]) -> jax.Array:
    """Standard normal (n, h, w, c) float32; row i is a function of (key, indices[i]) alone."""
    return jax.vmap(lambda k: jax.random.normal(k, shape))(
        sample_keys(key, Purpose.SAMPLE_NOISE, indices)
    )


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
    tolerance: float


class Batch(NamedTuple):
    """Where a batch of samples starts: noise (n, h, w, c), keys of what a solver adds (n,), labels
    (n,) int32.
    """

    noise: jax.Array
    keys: jax.Array
    label: jax.Array


class Guidance(NamedTuple):
    """Weight, and the times between which it holds; all () float32."""

    weight: jax.Array
    begin: jax.Array
    end: jax.Array


@functools.partial(jax.jit, static_argnames=("method",))
def _integrate(
    method: Method, params: Params, batch: Batch, steps: jax.Array, shift: jax.Array
) -> Solution:
    def predict(x: jax.Array, t: jax.Array, label: jax.Array) -> jax.Array:
        return method.predict(params, x, t, label)

    problem = Problem(method.path, method.output, predict, batch.label, shift)
    return integrate(method.solver, problem, batch.noise, batch.keys, steps, method.tolerance)


def _guided(
    method: Method, params: Params, guidance: Guidance, null_class: int, channels: int | None
) -> Prediction:
    def guided(x: jax.Array, t: jax.Array, label: jax.Array) -> jax.Array:
        # Both of a sample side by side, so that neither leaves its device.
        both = jnp.stack([label, jnp.full_like(label, null_class)], axis=1).reshape(-1)
        prediction = method.predict(params, jnp.repeat(x, 2, axis=0), jnp.repeat(t, 2), both)
        conditional, unconditional = prediction[0::2], prediction[1::2]
        inside = (t >= guidance.begin) & (t <= guidance.end)
        weight = jnp.where(inside, guidance.weight, 1.0).reshape(t.shape + (1,) * (x.ndim - 1))
        return guide(conditional, unconditional, weight, channels)

    return guided


@functools.partial(jax.jit, static_argnames=("method", "null_class", "channels"))
def _integrate_guided(
    method: Method,
    params: Params,
    batch: Batch,
    steps: jax.Array,
    shift: jax.Array,
    guidance: Guidance,
    null_class: int,
    channels: int | None,
) -> Solution:
    guided = _guided(method, params, guidance, null_class, channels)
    problem = Problem(method.path, method.output, guided, batch.label, shift)
    solution = integrate(method.solver, problem, batch.noise, batch.keys, steps, method.tolerance)
    return solution._replace(evaluations=2 * solution.evaluations)


class Samples(NamedTuple):
    """x (n, h, w, c) float32 in the model's scale, and the network evaluations each took, (n,)
    int32.
    """

    x: NDArray[np.float32]
    evaluations: NDArray[np.int32]


def _shardings(batch_size: int) -> tuple[NamedSharding, NamedSharding]:
    """For a batch, over as many local devices as divide it, and for what all of them hold."""
    devices = jax.local_devices()
    count = next(count for count in range(len(devices), 0, -1) if batch_size % count == 0)
    mesh = Mesh(np.array(devices[:count]), ("data",))
    return NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())


def spread(trained: TrainedModel, batch_size: int) -> TrainedModel:
    """The same with its weights on every device that samples of this batch size are drawn on; worth
    it before many.
    """
    _, everywhere = _shardings(batch_size)
    return dataclasses.replace(trained, params=jax.device_put(trained.params, everywhere))


def sample(
    trained: TrainedModel,
    labels: ArrayLike,
    indices: ArrayLike,
    *,
    seed: int,
    steps: int,
    cfg: float,
    cfg_channels: int | None = None,
    cfg_interval: tuple[float, float] = EVERYWHERE,
    shift: float = 1.0,
    tolerance: float = 1e-5,
    batch_size: int = 64,
    solver: str | None = None,
) -> Samples:
    """Draw one sample for each (label, index), on all local devices that divide the batch.

    Args:
        trained: from `load_for_sampling`.
        labels: (n,) class numbers; `trained.null_class` asks for an unconditional sample.
        indices: (n,) numbers of the samples: sample i is a function of (seed, i, label), not of its
            neighbours.
        seed: of the initial noise, and of what a stochastic solver adds.
        steps: of the solver; `dopri5` chooses its own.
        cfg: guidance weight; 1 is none, and then the unconditional half is not computed.
        cfg_channels: guide only the first channels (see `guide`).
        cfg_interval: the times t between which there is guidance, both included (Kynkäänniemi et
            al. 2024, arXiv:2404.07724, who count by noise level).
        shift: of the time steps towards noise; see `flowtrain.flow.solvers.shifted`.
        tolerance: of `dopri5`.
        batch_size: of the compiled function; the last batch is padded.
        solver: one that goes with the run's objective (`schemas.config.choose_solver`); default:
            the recipe's.
    """
    label, index = np.asarray(labels, np.int32), np.asarray(indices, np.int32)
    key, shape, found = jax.random.key(seed), trained.run.latent_shape, []
    recipe = trained.run.recipe
    path = make_objective(recipe.objective).path
    method = Method(
        trained.predict, path, recipe.model.output, solver or recipe.sampler.solver, tolerance
    )
    over, everywhere = _shardings(batch_size)
    params = jax.device_put(trained.params, everywhere)  # nothing moves where `spread` has been
    for begin in range(0, len(label), batch_size):
        part = slice(begin, begin + batch_size)
        real = len(label[part])
        padded_label, padded_index = (
            jax.device_put(np.pad(array[part], (0, batch_size - real), mode="edge"), over)
            for array in (label, index)
        )
        batch = Batch(
            initial_noise(key, padded_index, shape), _solver_keys(key, padded_index), padded_label
        )
        count, moved = jnp.int32(steps), jnp.float32(shift)
        if cfg == 1:
            solution = _integrate(method, params, batch, count, moved)
        else:
            guidance = Guidance(*map(jnp.float32, (cfg, *cfg_interval)))
            null = trained.null_class
            solution = _integrate_guided(
                method, params, batch, count, moved, guidance, null, cfg_channels
            )
        found.append(Samples(*(np.asarray(each)[:real] for each in solution)))
    if not found:
        return Samples(np.zeros((0, *shape), np.float32), np.zeros(0, np.int32))
    return Samples(*(np.concatenate(parts) for parts in zip(*found, strict=True)))


class Trajectory(NamedTuple):
    """Moments on the way of n samples, k of them: t (k,) float32, and (k, n, h, w, c) float32 in
    the model's scale.

    `x` is where the samples are at `t`, `data` what the network takes for the data there. Where t =
    1 both are the samples themselves.
    """

    t: NDArray[np.float32]
    x: NDArray[np.float32]
    data: NDArray[np.float32]


@functools.partial(jax.jit, static_argnames=("method", "null_class", "channels"))
def _advance(
    method: Method,
    params: Params,
    batch: Batch,
    x: jax.Array,
    i: jax.Array,
    steps: jax.Array,
    shift: jax.Array,
    guidance: Guidance | None,
    null_class: int,
    channels: int | None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """One step from x: x after it, the time () it begins at, and the data as predicted there."""
    asked: list[tuple[jax.Array, jax.Array]] = []

    def predict(x: jax.Array, t: jax.Array, label: jax.Array) -> jax.Array:
        found = guided(x, t, label) if guided else method.predict(params, x, t, label)
        asked.append((t, found))
        return found

    guided = _guided(method, params, guidance, null_class, channels) if guidance else None
    problem = Problem(method.path, method.output, predict, batch.label, shift)
    after = STEPPERS[method.solver](problem, x, batch.keys, i, steps)
    t, prediction = asked[0]  # every solver asks first where its step begins
    return after, t[0], method.path.ends(method.output, prediction, x, t).data


def trajectory(
    trained: TrainedModel,
    labels: ArrayLike,
    indices: ArrayLike,
    *,
    seed: int,
    steps: int,
    cfg: float,
    moments: Sequence[int],
    cfg_channels: int | None = None,
    cfg_interval: tuple[float, float] = EVERYWHERE,
    shift: float = 1.0,
    solver: str | None = None,
) -> Trajectory:
    """The samples that `sample` draws, to rounding, at some moments of their way; a few, as one
    batch on one device.

    Args:
        trained: as for `sample`, and so are labels, indices, seed and what follows but `moments`.
        labels: (n,) class numbers.
        indices: (n,) numbers of the samples.
        seed: of the noise.
        steps: of the solver, which cannot be `dopri5`: each of its samples has its own.
        cfg: guidance weight.
        moments: (k,) numbers of steps after which to look, in [0, steps], least first; `steps` is
            the end.
        cfg_channels: guide only the first channels.
        cfg_interval: the times between which there is guidance.
        shift: of the time steps.
        solver: default: the recipe's.
    """
    label, index = jnp.asarray(labels, jnp.int32), jnp.asarray(indices, jnp.int32)
    key, recipe = jax.random.key(seed), trained.run.recipe
    path = make_objective(recipe.objective).path
    method = Method(
        trained.predict, path, recipe.model.output, solver or recipe.sampler.solver, 0.0
    )
    batch = Batch(
        initial_noise(key, index, trained.run.latent_shape), _solver_keys(key, index), label
    )
    guidance = None if cfg == 1 else Guidance(*map(jnp.float32, (cfg, *cfg_interval)))
    count, moved = jnp.int32(steps), jnp.float32(shift)
    x, found = batch.noise, []
    for i in range(steps):
        after, t, data = _advance(
            method,
            trained.params,
            batch,
            x,
            jnp.int32(i),
            count,
            moved,
            guidance,
            trained.null_class,
            cfg_channels,
        )
        if i in moments:
            found.append((t, x, data))
        x = after
    if steps in moments:
        found.append((jnp.float32(1), x, x))
    return Trajectory(
        *(np.stack([np.asarray(each) for each in kind]) for kind in zip(*found, strict=True))
    )
