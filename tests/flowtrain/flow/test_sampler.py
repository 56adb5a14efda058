"""Solvers against closed forms; guidance; and that sample i is a function of (seed, i) alone."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowtrain.flow import sampler
from flowtrain.flow.path import LinearPath, VariancePreservingPath
from flowtrain.flow.sampler import Samples, Trajectory, guide, sample, spread, trajectory
from flowtrain.model import make_network
from flowtrain.state.checkpoint import TrainedModel
from schemas.manifest import Normalization
from schemas.recipes import make_recipe
from schemas.run import DatasetRef, Run
from tests.flowtrain.gaussians import MEAN, gaussian_steps, perfect_epsilon

SHAPE, CLASSES = (4, 4, 2), ("a", "b", "c")
LINEAR, VP = LinearPath(), VariancePreservingPath()
NOISE = jnp.asarray(np.random.default_rng(0).standard_normal((4, 6)), jnp.float32)


def _velocity(params: Any, x: jax.Array, t: jax.Array, label: jax.Array) -> jax.Array:
    """Linear in x, so that Euler has a closed form; the null class (3) has a rate of its own."""
    rate = params["rate"][label]
    return rate[:, None, None, None] * x


def _model(predict: Any, params: Any, **objective: Any) -> TrainedModel:
    content = {
        "model": {"size": "debug"},
        "train": {"steps": 1, "batch_size": 1},
        "objective": objective,
    }
    run = Run(
        recipe=make_recipe(content),
        dataset=DatasetRef(
            path="", digest="", split="", records=1, flips=False, source="", resolution=16
        ),
        latent_shape=SHAPE,
        classes=CLASSES,
        normalization=Normalization(offset=(0.0,) * 2, scale=(1.0,) * 2),
        vae=None,
        parameters=4,
        versions={},
    )
    return TrainedModel(run, 1, "ema", predict, params)


def _epsilon(params: Any, x: jax.Array, t: jax.Array, label: jax.Array) -> jax.Array:
    return perfect_epsilon(x, t)


def _draw(
    model: TrainedModel, labels: Any, indices: Any, *, batch_size: int = 64, **changes: Any
) -> Samples:
    """Samples with the recipe's settings, but for the changes."""
    settings = model.run.recipe.sampler.settings(**changes)
    return sample(model, labels, indices, settings, batch_size=batch_size)


def _way(
    model: TrainedModel, labels: Any, indices: Any, moments: list[int], **changes: Any
) -> Trajectory:
    """Likewise."""
    return trajectory(model, labels, indices, model.run.recipe.sampler.settings(**changes), moments)


@pytest.fixture(scope="module")
def trained() -> TrainedModel:
    return _model(_velocity, {"rate": jnp.array([-1.0, 0.5, 1.0, 0.25])})


@pytest.fixture(scope="module")
def diffusion() -> TrainedModel:
    return _model(_epsilon, None, kind="diffusion")


def test_ddpm_with_a_perfect_epsilon_of_a_gaussian_has_its_moments(diffusion: TrainedModel):
    """Mean, variance and what is left of the initial noise: wrong if a step's noise were used
    twice, or the first's.
    """
    count, key = 1000, jax.random.key(5)
    noise = np.asarray(sampler.initial_noise(key, jnp.arange(count), SHAPE)).ravel()
    for steps in (2, 10):
        x = _draw(
            diffusion,
            np.zeros(count),
            np.arange(count),
            seed=5,
            steps=steps,
            cfg=1,
            batch_size=count,
            solver="ddpm",
        ).x.ravel()
        weight, added, alpha = gaussian_steps(steps, eta=1.0)
        slope, constant = np.polyfit(noise, x, 1)
        deviation = np.sqrt(added / len(x))  # of a mean over 32000 numbers: 0.003
        assert slope == pytest.approx(weight, abs=4 * deviation)
        assert constant == pytest.approx(MEAN * (1 - weight * alpha), abs=4 * deviation)
        assert np.var(x - weight * noise) == pytest.approx(added, rel=4 * np.sqrt(2 / len(x)))


# Compilations and independence


@pytest.mark.parametrize("solver", ["euler", "ddpm", "rk4", "sde"])
def test_every_step_count_and_guidance_share_a_compilation(trained: TrainedModel, solver: str):
    for function, settings in (
        (sampler._integrate, [(1, 1.0), (3, 1.0), (10, 1.0)]),
        (sampler._integrate, [(1, 2.0), (3, 4.0), (10, 0.0)]),
    ):
        # the second is entered once more, for the shardings the first one's noise came with
        for _ in range(2):
            _draw(
                trained,
                [0, 1],
                [0, 1],
                seed=0,
                steps=2,
                cfg=settings[0][1],
                batch_size=3,
                solver=solver,
            )
        before = function._cache_size()  # pyright: ignore[reportAttributeAccessIssue]
        for steps, cfg in settings:
            _draw(
                trained,
                [0, 1],
                [0, 1],
                seed=steps,
                steps=steps,
                cfg=cfg,
                batch_size=3,
                solver=solver,
            )
        assert function._cache_size() == before  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("solver", ["euler", "ddpm", "dopri5"])
def test_sample_i_does_not_depend_on_batch_order_or_neighbours(trained: TrainedModel, solver: str):
    labels, indices = np.array([0, 1, 2, 1, 0]), np.array([10, 11, 12, 13, 14])
    settings: dict[str, Any] = {"seed": 3, "steps": 5, "cfg": 2.0, "solver": solver}
    whole = _draw(trained, labels, indices, batch_size=5, **settings).x
    pairs = _draw(trained, labels[::-1], indices[::-1], batch_size=2, **settings).x[::-1]
    np.testing.assert_array_equal(whole, pairs)
    alone = _draw(trained, [2], [12], batch_size=5, **settings).x
    np.testing.assert_array_equal(alone[0], whole[2])
    another = dict(settings, seed=4)
    assert (_draw(trained, [2], [12], batch_size=5, **another).x != alone).all()


def test_the_recipe_chooses_the_solver(trained: TrainedModel, diffusion: TrainedModel):
    def drawn(model: TrainedModel, **solver: Any) -> np.ndarray:
        return _draw(model, [0, 1], [0, 1], seed=0, steps=3, cfg=1, batch_size=3, **solver).x

    np.testing.assert_array_equal(drawn(trained), drawn(trained, solver="euler"))
    np.testing.assert_array_equal(drawn(diffusion), drawn(diffusion, solver="ddim"))
    assert (drawn(diffusion) != drawn(diffusion, solver="ddpm")).all()


@pytest.mark.parametrize("solver", ["euler", "sde"])
def test_the_same_samples_at_any_batch_size_and_on_any_number_of_devices(solver: str):
    """A real network. 64 divides over the eight fake devices, 7 over seven, 1 is one."""
    small = _model(None, None)
    network = make_network(small.run.recipe.model, SHAPE, len(CLASSES))
    params = network.init(jax.random.key(0))
    params = jax.tree.map(
        lambda leaf: leaf + 0.05 * jax.random.normal(jax.random.key(1), leaf.shape), params
    )
    model = dataclasses.replace(small, predict=network.predict, params=params)
    labels, indices = np.arange(64) % 3, np.arange(100, 164)
    drawn = {
        size: _draw(
            spread(model, size),
            labels,
            indices,
            seed=3,
            steps=4,
            cfg=2.0,
            batch_size=size,
            solver=solver,
        )
        for size in (64, 7, 1)
    }
    assert drawn[64].x.std() > 0.5
    for size in (7, 1):
        np.testing.assert_allclose(drawn[size].x, drawn[64].x, atol=2e-5)


# Guidance


def test_guidance_follows_the_formula(trained: TrainedModel):
    labels, indices = np.array([0, 1, 2]), np.arange(3)
    noise = np.asarray(sampler.initial_noise(jax.random.key(0), jnp.arange(3), SHAPE))
    conditional, null, weight = np.array([-1.0, 0.5, 1.0]), 0.25, 3.0
    guided = (null + weight * (conditional - null)).reshape(3, 1, 1, 1)
    plain = conditional.reshape(3, 1, 1, 1)
    settings: dict[str, Any] = {"seed": 0, "steps": 2, "batch_size": 3}
    np.testing.assert_allclose(
        _draw(trained, labels, indices, cfg=weight, **settings).x,
        noise * (1 + guided / 2) ** 2,
        rtol=1e-5,
    )
    np.testing.assert_allclose(
        _draw(trained, labels, indices, cfg=1, **settings).x,
        noise * (1 + plain / 2) ** 2,
        rtol=1e-5,
    )
    some = _draw(trained, labels, indices, cfg=weight, cfg_channels=1, **settings).x
    np.testing.assert_allclose(some[..., :1], (noise * (1 + guided / 2) ** 2)[..., :1], rtol=1e-5)
    np.testing.assert_allclose(some[..., 1:], (noise * (1 + plain / 2) ** 2)[..., 1:], rtol=1e-5)


def test_guidance_holds_in_its_interval_only(trained: TrainedModel):
    """Steps begin at 0, 0.25, 0.5 and 0.75: two of them inside, both ends included."""
    noise = np.asarray(sampler.initial_noise(jax.random.key(0), jnp.arange(1), SHAPE))
    rate, null, weight = 0.5, 0.25, 3.0
    guided, plain = 1 + (null + weight * (rate - null)) / 4, 1 + rate / 4
    found = _draw(
        trained, [1], [0], seed=0, steps=4, cfg=weight, cfg_interval=(0.25, 0.5), batch_size=1
    )
    np.testing.assert_allclose(found.x, noise * guided**2 * plain**2, rtol=1e-5)
    assert found.evaluations.tolist() == [8]


def test_weight_0_is_unconditional_and_1_is_conditional():
    conditional, unconditional = jnp.ones(3), jnp.zeros(3)
    np.testing.assert_array_equal(
        guide(conditional, unconditional, jnp.float32(0), None), unconditional
    )
    np.testing.assert_array_equal(
        guide(conditional, unconditional, jnp.float32(1), None), conditional
    )


def test_guidance_is_the_same_in_every_view():
    t, (conditional, unconditional) = (
        jnp.array([0.3, 0.8]),
        jax.random.normal(jax.random.key(0), (2, 2, 5)),
    )
    x, weight = NOISE[:2, :5], jnp.float32(2.5)
    for to in ("data", "velocity", "score"):
        apart = [VP.convert("epsilon", each, x, t, to) for each in (conditional, unconditional)]
        together = VP.convert("epsilon", guide(conditional, unconditional, weight, None), x, t, to)
        np.testing.assert_allclose(
            guide(apart[0], apart[1], weight, None), together, rtol=2e-4, atol=1e-4
        )


def test_no_labels_give_no_samples(trained: TrainedModel):
    assert _draw(trained, [], [], seed=0, steps=1, cfg=1).x.shape == (0, *SHAPE)


# On the way


@pytest.mark.parametrize("solver", ["euler", "heun", "rk4", "ddim", "ddpm", "sde", "sde-sbdm"])
@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_a_trajectory_ends_in_the_sample(trained: TrainedModel, solver: str, cfg: float):
    labels, indices = [0, 2, 1], [7, 3, 12]
    settings = {
        "seed": 5,
        "steps": 6,
        "cfg": cfg,
        "cfg_interval": (0.1, 0.7),
        "cfg_channels": 1,
        "shift": 1.5,
    }
    drawn = _draw(trained, labels, indices, solver=solver, **settings).x
    way = _way(trained, labels, indices, [0, 4, 6], solver=solver, **settings)
    assert way.x.shape == way.data.shape == (3, 3, *SHAPE)
    np.testing.assert_allclose(way.x[-1], drawn, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(way.data[-1], way.x[-1])
    np.testing.assert_array_equal(
        way.x[0], sampler.initial_noise(jax.random.key(5), jnp.array(indices), SHAPE)
    )
    assert (np.diff(way.t) > 0).all()
    # what a step asks later than its beginning is not shown
    assert way.t[0] == pytest.approx(0, abs=2e-3)


def test_a_trajectory_of_a_diffusion_ends_in_the_sample(diffusion: TrainedModel):
    for solver in ("ddim", "ddpm"):
        drawn = _draw(diffusion, [0, 1], [4, 5], seed=1, steps=3, cfg=1, solver=solver).x
        way = _way(diffusion, [0, 1], [4, 5], [1, 3], seed=1, steps=3, cfg=1, solver=solver)
        np.testing.assert_allclose(way.x[-1], drawn, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(way.t, [1 - 0.667, 1.0], rtol=1e-6)


def test_moments_of_a_trajectory_have_the_closed_form(trained: TrainedModel):
    """Euler's method on v = rate x: x_k = noise (1 + rate / n)^k, and the data seen from there is x
    + (1 - t) v.
    """
    noise, rate = np.asarray(sampler.initial_noise(jax.random.key(0), jnp.arange(1), SHAPE)), 0.5
    way = _way(trained, [1], [0], [0, 1, 3, 4], seed=0, steps=4, cfg=1)
    np.testing.assert_allclose(way.t, [0, 0.25, 0.75, 1])
    for found, seen, t, k in zip(way.x, way.data, way.t, (0, 1, 3, 4), strict=True):
        expected = noise * (1 + rate / 4) ** k
        np.testing.assert_allclose(found, expected, rtol=1e-5)
        np.testing.assert_allclose(seen, expected * (1 + (1 - t) * rate), rtol=1e-5)
