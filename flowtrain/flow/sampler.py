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
from jaxtyping import Array, Float32, Int32
from numpy.typing import ArrayLike

from flowtrain.flow.objective import make_objective
from flowtrain.flow.path import Path
from flowtrain.flow.solvers import STEPPERS, Prediction, Problem, Solution, integrate
from flowtrain.model import Params, Predict
from flowtrain.records.counter import Purpose, sample_keys
from flowtrain.shapes import (
    Count,
    Labels,
    Latents,
    Numbers,
    Points,
    RandomKey,
    RandomKeys,
    Scalar,
    Times,
)
from flowtrain.state.checkpoint import TrainedModel
from schemas.sampler import TOLERANCE, SamplerSettings


def guide(
    conditional: Points,
    unconditional: Points,
    weight: Float32[Array, "..."],
    channels: int | None,
) -> Points:
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
def initial_noise(key: RandomKey, indices: Numbers, shape: tuple[int, int, int]) -> Latents:
    """Standard normal (n, h, w, c) float32; row i is a function of (key, indices[i]) alone."""
    return jax.vmap(lambda k: jax.random.normal(k, shape))(
        sample_keys(key, Purpose.SAMPLE_NOISE, indices)
    )


@jax.jit
def _solver_keys(key: RandomKey, indices: Numbers) -> RandomKeys:
    """(n,) keys of what a solver adds; key i is a function of (key, indices[i]) alone."""
    return sample_keys(key, Purpose.SOLVER_NOISE, indices)


class Method(NamedTuple):
    """What a compiled sampler is specialised to. Hashable.

    `channels` are those that are guided, None for all; `null_class` is the label of no label.
    """

    predict: Predict
    path: Path
    output: str
    solver: str
    tolerance: float
    null_class: int
    channels: int | None


class Pace(NamedTuple):
    """Number of steps, () int32, and their shift towards noise, () float32."""

    steps: Count
    shift: Scalar


class Guidance(NamedTuple):
    """Weight, and the times between which it holds; all () float32."""

    weight: Scalar
    begin: Scalar
    end: Scalar


class Batch(NamedTuple):
    """Where a batch of samples starts: noise (n, h, w, c), keys of what a solver adds (n,), labels
    (n,) int32.
    """

    noise: Latents
    keys: RandomKeys
    label: Labels


def _compiled_for(
    trained: TrainedModel, settings: SamplerSettings
) -> tuple[Method, Pace, Guidance | None]:
    """The settings, cut into what is compiled in and what is traced; no guidance is None."""
    recipe = trained.run.recipe
    guided = settings.cfg != 1
    method = Method(
        predict=trained.predict,
        path=make_objective(recipe.objective).path,
        output=recipe.model.output,
        solver=settings.solver,
        tolerance=settings.tolerance or TOLERANCE,
        null_class=trained.null_class,
        channels=settings.cfg_channels if guided else None,
    )
    pace = Pace(jnp.int32(settings.steps), jnp.float32(settings.shift))
    if not guided:
        return method, pace, None
    begin, end = settings.cfg_interval
    return method, pace, Guidance(*map(jnp.float32, (settings.cfg, begin, end)))


def _prediction(method: Method, params: Params, guidance: Guidance | None) -> Prediction:
    """The network's prediction, guided where there is guidance."""

    def plain(x: Latents, t: Times, label: Labels) -> Latents:
        return method.predict(params, x, t, label)

    if guidance is None:
        return plain

    def guided(x: Latents, t: Times, label: Labels) -> Latents:
        # Both of a sample side by side, so that neither leaves its device.
        null = jnp.full_like(label, method.null_class)
        both = jnp.stack([label, null], axis=1).reshape(-1)
        prediction = plain(jnp.repeat(x, 2, axis=0), jnp.repeat(t, 2), both)
        conditional, unconditional = prediction[0::2], prediction[1::2]
        inside = (t >= guidance.begin) & (t <= guidance.end)
        weight = jnp.where(inside, guidance.weight, 1.0).reshape(t.shape + (1,) * (x.ndim - 1))
        return guide(conditional, unconditional, weight, method.channels)

    return guided


@functools.partial(jax.jit, static_argnames=("method",))
def _integrate(
    method: Method, params: Params, batch: Batch, pace: Pace, guidance: Guidance | None
) -> Solution:
    """All steps of a batch; `guidance` None is compiled apart, without the unconditional half."""
    predict = _prediction(method, params, guidance)
    problem = Problem(method.path, method.output, predict, batch.label, pace.shift)
    solution = integrate(
        method.solver, problem, batch.noise, batch.keys, pace.steps, method.tolerance
    )
    if guidance is None:
        return solution
    return solution._replace(evaluations=2 * solution.evaluations)


class Samples(NamedTuple):
    """x (n, h, w, c) float32 in the model's scale, and the network evaluations each took, (n,)
    int32.
    """

    x: Float32[np.ndarray, "n h w c"]
    evaluations: Int32[np.ndarray, " n"]


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
    settings: SamplerSettings,
    *,
    batch_size: int = 64,
) -> Samples:
    """Draw one sample for each (label, index), on all local devices that divide the batch.

    Args:
        trained: from `load_for_sampling`.
        labels: (n,) class numbers; `trained.null_class` asks for an unconditional sample.
        indices: (n,) numbers of the samples: sample i is a function of (seed, i, label), not of its
            neighbours.
        settings: of the sampler; the recipe's are `trained.run.recipe.sampler.settings()`.
        batch_size: of the compiled function; the last batch is padded.
    """
    label, index = np.asarray(labels, np.int32), np.asarray(indices, np.int32)
    key, shape = jax.random.key(settings.seed), trained.run.latent_shape
    method, pace, guidance = _compiled_for(trained, settings)
    over, everywhere = _shardings(batch_size)
    params = jax.device_put(trained.params, everywhere)  # nothing moves where `spread` has been
    found: list[Samples] = []
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
        solution = _integrate(method, params, batch, pace, guidance)
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

    t: Float32[np.ndarray, " k"]
    x: Float32[np.ndarray, "k n h w c"]
    data: Float32[np.ndarray, "k n h w c"]


@functools.partial(jax.jit, static_argnames=("method",))
def _advance(
    method: Method,
    params: Params,
    batch: Batch,
    x: Latents,
    i: Count,
    pace: Pace,
    guidance: Guidance | None,
) -> tuple[Latents, Scalar, Latents]:
    """One step from x: x after it, the time () it begins at, and the data as predicted there."""
    asked: list[tuple[Times, Latents]] = []
    prediction = _prediction(method, params, guidance)

    def predict(x: Latents, t: Times, label: Labels) -> Latents:
        found = prediction(x, t, label)
        asked.append((t, found))
        return found

    problem = Problem(method.path, method.output, predict, batch.label, pace.shift)
    after = STEPPERS[method.solver](problem, x, batch.keys, i, pace.steps)
    t, first = asked[0]  # every solver asks first where its step begins
    return after, t[0], method.path.ends(method.output, first, x, t).data


def trajectory(
    trained: TrainedModel,
    labels: ArrayLike,
    indices: ArrayLike,
    settings: SamplerSettings,
    moments: Sequence[int],
) -> Trajectory:
    """The samples that `sample` draws, to rounding, at some moments of their way; a few, as one
    batch on one device.

    Args:
        trained: as for `sample`, and so are labels and indices.
        labels: (n,) class numbers.
        indices: (n,) numbers of the samples.
        settings: of the sampler, whose solver cannot be `dopri5`: each of its samples has steps of
            its own.
        moments: (k,) numbers of steps after which to look, in [0, steps], least first; `steps` is
            the end.
    """
    label, index = jnp.asarray(labels, jnp.int32), jnp.asarray(indices, jnp.int32)
    key = jax.random.key(settings.seed)
    method, pace, guidance = _compiled_for(trained, settings)
    batch = Batch(
        initial_noise(key, index, trained.run.latent_shape), _solver_keys(key, index), label
    )
    x, found = batch.noise, []
    for i in range(settings.steps):
        after, t, data = _advance(method, trained.params, batch, x, jnp.int32(i), pace, guidance)
        if i in moments:
            found.append((t, x, data))
        x = after
    if settings.steps in moments:
        found.append((jnp.float32(1), x, x))
    return Trajectory(
        *(np.stack([np.asarray(each) for each in kind]) for kind in zip(*found, strict=True))
    )
