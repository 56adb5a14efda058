"""Euler against its closed form; guidance; and that sample i is a function of (seed, i) alone."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowtrain import sampler
from flowtrain.checkpoint import TrainedModel
from flowtrain.sampler import euler, guide, sample
from schemas.config import make_recipe
from schemas.manifest import Normalization
from schemas.run import DatasetRef, Run

SHAPE, CLASSES = (4, 4, 2), ("a", "b", "c")


def _velocity(params: Any, x: jax.Array, t: jax.Array, label: jax.Array) -> jax.Array:
    """Linear in x, so that Euler has a closed form; the null class (3) has a rate of its own."""
    rate = params["rate"][label]
    return rate[:, None, None, None] * x


@pytest.fixture(scope="module")
def trained() -> TrainedModel:
    run = Run(
        recipe=make_recipe({"model": {"size": "debug"}, "train": {"steps": 1, "batch_size": 1}}),
        dataset=DatasetRef(path="", digest="", split="", records=1, flips=False, source="", resolution=16),
        latent_shape=SHAPE,
        classes=CLASSES,
        normalization=Normalization(offset=(0.0,) * 2, scale=(1.0,) * 2),
        vae=None,
        parameters=4,
        versions={},
    )
    return TrainedModel(run, 1, "ema", _velocity, {"rate": jnp.array([-1.0, 0.5, 1.0, 0.25])})


def test_euler_of_a_linear_field_is_a_power():
    noise = jax.random.normal(jax.random.key(0), (2, 3))
    for steps in (1, 4, 50):
        x = euler(lambda x, t: -0.7 * x, noise, steps)
        np.testing.assert_allclose(x, noise * (1 - 0.7 / steps) ** steps, rtol=1e-5)


def test_euler_evaluates_the_velocity_at_the_left_ends():
    x = euler(lambda x, t: jnp.broadcast_to(t[:, None], x.shape), jnp.zeros((2, 3)), 4)
    np.testing.assert_allclose(x, (0 + 0.25 + 0.5 + 0.75) / 4)


def test_every_step_count_and_guidance_share_a_compilation(trained: TrainedModel):
    for function, settings in (
        (sampler._integrate, [(1, 1.0), (3, 1.0), (10, 1.0)]),
        (sampler._integrate_guided, [(1, 2.0), (3, 4.0), (10, 0.0)]),
    ):
        sample(trained, [0, 1], [0, 1], seed=0, steps=2, cfg=settings[0][1], batch_size=3)
        before = function._cache_size()
        for steps, cfg in settings:
            sample(trained, [0, 1], [0, 1], seed=0, steps=steps, cfg=cfg, batch_size=3)
        assert function._cache_size() == before


def test_sample_i_does_not_depend_on_batch_order_or_neighbours(trained: TrainedModel):
    labels, indices = np.array([0, 1, 2, 1, 0]), np.array([10, 11, 12, 13, 14])
    settings = {"seed": 3, "steps": 5, "cfg": 2.0}
    whole = sample(trained, labels, indices, batch_size=5, **settings)
    pairs = sample(trained, labels[::-1], indices[::-1], batch_size=2, **settings)[::-1]
    np.testing.assert_array_equal(whole, pairs)
    alone = sample(trained, [2], [12], batch_size=5, **settings)
    np.testing.assert_array_equal(alone[0], whole[2])
    assert (sample(trained, [2], [12], batch_size=5, seed=4, steps=5, cfg=2.0) != alone).all()


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


def test_no_labels_give_no_samples(trained: TrainedModel):
    assert sample(trained, [], [], seed=0, steps=1, cfg=1).shape == (0, *SHAPE)
