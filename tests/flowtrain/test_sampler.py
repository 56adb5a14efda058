"""Solvers against closed forms; guidance; and that sample i is a function of (seed, i) alone."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowtrain import sampler
from flowtrain.checkpoint import TrainedModel
from flowtrain.path import LinearPath, Path, VariancePreservingPath
from flowtrain.sampler import SOLVERS, Prediction, Problem, guide, integrate, sample
from schemas.config import SOLVERS as SOLVERS_OF
from schemas.config import make_recipe
from schemas.manifest import Normalization
from schemas.run import DatasetRef, Run

SHAPE, CLASSES = (4, 4, 2), ("a", "b", "c")
LINEAR, VP = LinearPath(), VariancePreservingPath()
MEAN, DEVIATION = 0.7, 0.5  # of Gaussian data


def _velocity(params: Any, x: jax.Array, t: jax.Array, label: jax.Array) -> jax.Array:
    """Linear in x, so that Euler has a closed form; the null class (3) has a rate of its own."""
    rate = params["rate"][label]
    return rate[:, None, None, None] * x


def _model(predict: Any, params: Any, **objective: Any) -> TrainedModel:
    content = {"model": {"size": "debug"}, "train": {"steps": 1, "batch_size": 1}, "objective": objective}
    run = Run(
        recipe=make_recipe(content),
        dataset=DatasetRef(path="", digest="", split="", records=1, flips=False, source="", resolution=16),
        latent_shape=SHAPE,
        classes=CLASSES,
        normalization=Normalization(offset=(0.0,) * 2, scale=(1.0,) * 2),
        vae=None,
        parameters=4,
        versions={},
    )
    return TrainedModel(run, 1, "ema", predict, params)


def _perfect_epsilon(params: Any, x: jax.Array, t: jax.Array, label: jax.Array) -> jax.Array:
    """E[noise | x] where the data are N(MEAN, DEVIATION^2)."""
    alpha, sigma = (value.reshape(value.shape + (1,) * (x.ndim - 1)) for value in VP.coefficients(t))
    return sigma * (x - alpha * MEAN) / (jnp.square(alpha * DEVIATION) + jnp.square(sigma))


@pytest.fixture(scope="module")
def trained() -> TrainedModel:
    return _model(_velocity, {"rate": jnp.array([-1.0, 0.5, 1.0, 0.25])})


@pytest.fixture(scope="module")
def diffusion() -> TrainedModel:
    return _model(_perfect_epsilon, None, kind="diffusion")


# Solvers


def _solve(solver: str, path: Path, output: str, predict: Prediction, noise: jax.Array) -> Callable[[int], jax.Array]:
    """x at t = 1 after a number of steps, by one compiled function."""
    keys = jax.random.split(jax.random.key(1), len(noise))
    return jax.jit(lambda steps: integrate(solver, Problem(path, output, predict), noise, keys, steps))


def _bent(x: jax.Array, t: jax.Array) -> jax.Array:
    """A prediction that depends on x and t in no simple way."""
    return jnp.sin(3 * x + t[:, None]) - 0.4 * x * t[:, None]


NOISE = jnp.asarray(np.random.default_rng(0).standard_normal((4, 6)), jnp.float32)


def test_euler_of_a_linear_field_is_a_power():
    solve = _solve("euler", LINEAR, "velocity", lambda x, t: -0.7 * x, NOISE)
    for steps in (1, 4, 50):
        np.testing.assert_allclose(solve(steps), NOISE * (1 - 0.7 / steps) ** steps, rtol=1e-5)


def test_euler_evaluates_the_velocity_at_the_left_ends():
    solve = _solve("euler", LINEAR, "velocity", lambda x, t: jnp.broadcast_to(t[:, None], x.shape), 0 * NOISE)
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


@pytest.mark.parametrize(("path", "solver"), [(LINEAR, "ddim"), (LINEAR, "ddpm"), (VP, "ddim"), (VP, "ddpm")])
def test_the_last_step_gives_the_predicted_data_and_adds_no_noise(path: Path, solver: str):
    solve = _solve(solver, path, "data", lambda x, t: jnp.full_like(x, 0.3), NOISE)
    for steps in (1, 3, 41):
        np.testing.assert_array_equal(solve(steps), np.full((4, 6), 0.3, np.float32))


def test_the_first_ancestral_step_of_a_flow_forgets_where_it_began():
    """alpha = 0 there, so the posterior does not depend on x: a difference of squares would keep 1e-4 of it."""
    keys = jax.random.split(jax.random.key(1), 4)
    problem = Problem(LINEAR, "data", lambda x, t: jnp.full_like(x, 0.3))
    first = jax.jit(lambda x, steps: SOLVERS["ddpm"](problem, x, keys, jnp.int32(0), steps))
    for steps in range(1, 200):
        np.testing.assert_allclose(first(NOISE, jnp.int32(steps)), first(0 * NOISE, jnp.int32(steps)), atol=1e-6)


def _gaussian_steps(steps: int, eta: float) -> tuple[float, float, float]:
    """Of x - alpha MEAN: its start's weight in the end, the variance added on the way, alpha at the start; float64.

    By DDIM's equation 12 and the variance of its equation 16, with the betas of DDPM.
    """
    product = np.cumprod(np.append(1.0, 1 - np.linspace(1e-4, 0.02, 1000)))
    levels = np.rint(1000 * (1 - np.arange(steps + 1) / steps)).astype(int)
    weight, added = 1.0, 0.0
    for now, after in pairwise(levels):
        total = product[now] * DEVIATION**2 + 1 - product[now]
        variance = eta**2 * (1 - product[after]) / (1 - product[now]) * (1 - product[now] / product[after])
        clean = np.sqrt(product[now]) * DEVIATION**2 / total
        noise = np.sqrt(1 - product[now]) / total
        factor = np.sqrt(product[after]) * clean + np.sqrt(1 - product[after] - variance) * noise
        weight, added = factor * weight, factor**2 * added + variance
    return weight, added, np.sqrt(product[-1])


def test_ddim_with_a_perfect_epsilon_of_a_gaussian():
    solve = _solve("ddim", VP, "epsilon", lambda x, t: _perfect_epsilon(None, x, t, t), NOISE)
    for steps in (1, 2, 10, 50, 1000):
        weight, _, alpha = _gaussian_steps(steps, eta=0.0)
        np.testing.assert_allclose(
            solve(steps), MEAN + weight * (NOISE - alpha * MEAN), atol=5e-5
        )  # float32, 1000 steps
    # With many steps it is the probability flow, which maps the normal law at t = 0 onto that of the data.
    np.testing.assert_allclose(weight, DEVIATION / np.sqrt(alpha**2 * DEVIATION**2 + 1 - alpha**2), rtol=1e-2)


def test_ddpm_with_a_perfect_epsilon_of_a_gaussian_has_its_moments(diffusion: TrainedModel):
    """Mean, variance and what is left of the initial noise: wrong if a step's noise were used twice, or the first's."""
    count, key = 1000, jax.random.key(5)
    noise = np.asarray(sampler.initial_noise(key, jnp.arange(count), SHAPE)).ravel()
    for steps in (2, 10):
        x = sample(
            diffusion, np.zeros(count), np.arange(count), seed=5, steps=steps, cfg=1, batch_size=count, solver="ddpm"
        ).ravel()
        weight, added, alpha = _gaussian_steps(steps, eta=1.0)
        slope, constant = np.polyfit(noise, x, 1)
        deviation = np.sqrt(added / len(x))  # of a mean over 32000 numbers: 0.003
        assert slope == pytest.approx(weight, abs=4 * deviation)
        assert constant == pytest.approx(MEAN * (1 - weight * alpha), abs=4 * deviation)
        assert np.var(x - weight * noise) == pytest.approx(added, rel=4 * np.sqrt(2 / len(x)))


# Compilations and independence


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_step_count_and_guidance_share_a_compilation(trained: TrainedModel, solver: str):
    for function, settings in (
        (sampler._integrate, [(1, 1.0), (3, 1.0), (10, 1.0)]),
        (sampler._integrate_guided, [(1, 2.0), (3, 4.0), (10, 0.0)]),
    ):
        sample(trained, [0, 1], [0, 1], seed=0, steps=2, cfg=settings[0][1], batch_size=3, solver=solver)
        before = function._cache_size()
        for steps, cfg in settings:
            sample(trained, [0, 1], [0, 1], seed=steps, steps=steps, cfg=cfg, batch_size=3, solver=solver)
        assert function._cache_size() == before


@pytest.mark.parametrize("solver", ["euler", "ddpm"])
def test_sample_i_does_not_depend_on_batch_order_or_neighbours(trained: TrainedModel, solver: str):
    labels, indices = np.array([0, 1, 2, 1, 0]), np.array([10, 11, 12, 13, 14])
    settings = {"seed": 3, "steps": 5, "cfg": 2.0, "solver": solver}
    whole = sample(trained, labels, indices, batch_size=5, **settings)
    pairs = sample(trained, labels[::-1], indices[::-1], batch_size=2, **settings)[::-1]
    np.testing.assert_array_equal(whole, pairs)
    alone = sample(trained, [2], [12], batch_size=5, **settings)
    np.testing.assert_array_equal(alone[0], whole[2])
    assert (sample(trained, [2], [12], batch_size=5, **settings | {"seed": 4}) != alone).all()


def test_the_recipe_chooses_the_solver(trained: TrainedModel, diffusion: TrainedModel):
    def drawn(model: TrainedModel, **solver: str) -> np.ndarray:
        return sample(model, [0, 1], [0, 1], seed=0, steps=3, cfg=1, batch_size=3, **solver)

    np.testing.assert_array_equal(drawn(trained), drawn(trained, solver="euler"))
    np.testing.assert_array_equal(drawn(diffusion), drawn(diffusion, solver="ddim"))
    assert (drawn(diffusion) != drawn(diffusion, solver="ddpm")).all()


def test_every_solver_that_a_recipe_may_name_is_there():
    assert {name for names in SOLVERS_OF.values() for name in names} == SOLVERS.keys()


# Guidance


def test_guidance_follows_the_formula(trained: TrainedModel):
    labels, indices = np.array([0, 1, 2]), np.arange(3)
    noise = np.asarray(sampler.initial_noise(jax.random.key(0), jnp.arange(3), SHAPE))
    conditional, null, weight = np.array([-1.0, 0.5, 1.0]), 0.25, 3.0
    guided = (null + weight * (conditional - null)).reshape(3, 1, 1, 1)
    plain = conditional.reshape(3, 1, 1, 1)
    settings = {"seed": 0, "steps": 2, "batch_size": 3}
    np.testing.assert_allclose(
        sample(trained, labels, indices, cfg=weight, **settings), noise * (1 + guided / 2) ** 2, rtol=1e-5
    )
    np.testing.assert_allclose(
        sample(trained, labels, indices, cfg=1, **settings), noise * (1 + plain / 2) ** 2, rtol=1e-5
    )
    some = sample(trained, labels, indices, cfg=weight, cfg_channels=1, **settings)
    np.testing.assert_allclose(some[..., :1], (noise * (1 + guided / 2) ** 2)[..., :1], rtol=1e-5)
    np.testing.assert_allclose(some[..., 1:], (noise * (1 + plain / 2) ** 2)[..., 1:], rtol=1e-5)


def test_weight_0_is_unconditional_and_1_is_conditional():
    conditional, unconditional = jnp.ones(3), jnp.zeros(3)
    np.testing.assert_array_equal(guide(conditional, unconditional, jnp.float32(0), None), unconditional)
    np.testing.assert_array_equal(guide(conditional, unconditional, jnp.float32(1), None), conditional)


def test_guidance_is_the_same_in_every_view():
    t, (conditional, unconditional) = jnp.array([0.3, 0.8]), jax.random.normal(jax.random.key(0), (2, 2, 5))
    x, weight = NOISE[:2, :5], jnp.float32(2.5)
    for to in ("data", "velocity", "score"):
        apart = [VP.convert("epsilon", each, x, t, to) for each in (conditional, unconditional)]
        together = VP.convert("epsilon", guide(conditional, unconditional, weight, None), x, t, to)
        np.testing.assert_allclose(guide(*apart, weight, None), together, rtol=2e-4, atol=1e-4)


def test_no_labels_give_no_samples(trained: TrainedModel):
    assert sample(trained, [], [], seed=0, steps=1, cfg=1).shape == (0, *SHAPE)
