"""What is learned: the random numbers of a batch, and losses that only the truth makes zero."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowtrain.flow.objective import (
    TIME_BINS,
    Draws,
    draw,
    losses_by_time,
    make_objective,
    record_losses,
)
from flowtrain.flow.path import Ends, LinearPath, VariancePreservingPath
from schemas.config import OUTPUTS, ObjectiveConfig

SHAPE, NULL = (4, 4, 2), 10
_compiled = jax.jit(draw, static_argnums=(2, 3, 4))


def _batch(n: int, epoch: int = 0) -> dict[str, Any]:
    return {
        "epoch": jnp.full(n, epoch, jnp.int32),
        "index": jnp.arange(n, dtype=jnp.int32),
        "label": jnp.arange(n, dtype=jnp.int32) % NULL,
    }


def _draw(batch: dict[str, Any], **config: Any) -> Draws:
    return _compiled(jax.random.key(0), batch, SHAPE, ObjectiveConfig(**config), NULL)


def _times(**config: Any) -> np.ndarray:
    """4000 times."""
    keys = jax.random.split(jax.random.key(0), 4000)
    return np.asarray(jax.jit(jax.vmap(make_objective(ObjectiveConfig(**config)).draw_time))(keys))


@pytest.mark.parametrize("kind", ["flow", "diffusion"])
def test_draws_of_a_record_do_not_depend_on_how_the_batch_is_cut(kind: str):
    batch, order = _batch(8), np.array([6, 1, 7, 0, 3, 2, 5, 4])
    whole = _draw(batch, kind=kind)
    parts = [
        _draw({name: value[order[i : i + 4]] for name, value in batch.items()}, kind=kind)
        for i in (0, 4)
    ]
    for name in ("noise", "time", "label"):
        joined = np.concatenate([getattr(part, name) for part in parts])
        np.testing.assert_array_equal(joined, np.asarray(getattr(whole, name))[order])
    at_levels = np.abs(whole.time * 1000 - np.round(whole.time * 1000)).max() < 1e-3
    assert at_levels == (kind == "diffusion")


def test_draws_differ_between_epochs_and_are_independent():
    first, second = _draw(_batch(4000)), _draw(_batch(4000, epoch=1))
    assert (first.time != second.time).all()
    noise = np.stack([np.asarray(first.noise).ravel(), np.asarray(second.noise).ravel()])
    assert abs(np.corrcoef(noise)[0, 1]) < 0.01  # 128000 numbers
    assert abs(noise.mean()) < 0.01
    assert abs(noise.std() - 1) < 0.01
    assert abs(np.corrcoef(first.time, first.noise[:, 0, 0, 0])[0, 1]) < 0.06


def test_logit_normal_and_uniform_times_have_their_quantiles():
    normal = _times(logit_mean=0.5, logit_std=2.0)
    logits = np.log(normal / (1 - normal))
    np.testing.assert_allclose([logits.mean(), logits.std()], [0.5, 2.0], atol=0.1)
    uniform = _times(time="uniform")
    np.testing.assert_allclose(np.quantile(uniform, [0.1, 0.5, 0.9]), [0.1, 0.5, 0.9], atol=0.03)
    assert uniform.min() >= 0
    assert uniform.max() <= 1


def test_a_uniform_share_reaches_the_ends_of_the_path():
    """Above t = 0.9 lie 1.40% of a logit-normal's draws, 10% of a uniform's and 5.7% of half and
    half.
    """
    mixed = _times(uniform_share=0.5)
    assert 0.045 < (mixed > 0.9).mean() < 0.07
    assert 0.005 < (_times() > 0.9).mean() < 0.025
    assert 0.08 < (_times(uniform_share=1.0) > 0.9).mean() < 0.12


def test_without_a_uniform_share_the_draws_are_those_of_earlier_runs():
    key = jax.random.key(7)
    drawn = make_objective(ObjectiveConfig()).draw_time(key)
    assert drawn == jax.nn.sigmoid(jax.random.normal(key))


def test_levels_of_diffusion_are_uniform_from_1_to_all():
    """Of 10 levels each is drawn about 400 times in 4000 (3.5 deviations of 19); level 0, clean
    data, never.
    """
    level = (1 - _times(kind="diffusion", time="uniform", diffusion_steps=10)) * 10
    np.testing.assert_allclose(level, np.round(level), atol=1e-5)
    found, counts = np.unique(np.round(level), return_counts=True)
    np.testing.assert_array_equal(found, np.arange(1, 11))
    np.testing.assert_allclose(counts, 400, atol=67)
    many = (1 - _times(kind="diffusion", time="uniform")) * 1000
    assert 1 - 1e-3 < many.min() < 5
    assert 995 < many.max() < 1000 + 1e-3


def test_labels_are_dropped_to_the_null_class_at_the_rate_asked_for():
    batch = _batch(4000)
    assert np.mean(np.asarray(_draw(batch, label_drop=0.1).label) == NULL) == pytest.approx(
        0.1, abs=0.02
    )
    np.testing.assert_array_equal(_draw(batch, label_drop=0.0).label, batch["label"])


def test_each_kind_has_its_path_with_the_numbers_of_the_recipe():
    assert make_objective(ObjectiveConfig()).path == LinearPath()
    config = ObjectiveConfig(kind="diffusion", beta_start=1e-3, beta_end=0.3, diffusion_steps=20)
    assert make_objective(config).path == VariancePreservingPath(1e-3, 0.3, 20)


@pytest.mark.parametrize(
    ("kind", "output"), [(kind, output) for kind in OUTPUTS for output in OUTPUTS[kind]]
)
def test_the_loss_is_zero_for_the_truth_only(kind: str, output: str):
    """The truth and the point on the path as the objectives define them, written out."""
    draws, data = _draw(_batch(8), kind=kind), jax.random.normal(jax.random.key(1), (8, *SHAPE))
    t = np.asarray(draws.time, np.float64).reshape(8, 1, 1, 1)
    if kind == "flow":
        alpha, sigma = t, 1 - t
    else:
        product = np.cumprod(np.append(1.0, 1 - np.linspace(1e-4, 0.02, 1000)))[
            np.rint(1000 * (1 - t)).astype(int)
        ]
        alpha, sigma = np.sqrt(product), np.sqrt(1 - product)
    noise = draws.noise
    right = {
        "velocity": data - noise,
        "negative_velocity": noise - data,
        "epsilon": noise,
        "data": data,
    }
    path = make_objective(ObjectiveConfig.model_validate({"kind": kind})).path

    def truth(params: Any, x: jax.Array, t: jax.Array, label: jax.Array) -> jax.Array:
        np.testing.assert_allclose(x, alpha * data + sigma * noise, atol=2e-6)
        np.testing.assert_array_equal(label, draws.label)
        return right[output]

    np.testing.assert_array_equal(
        record_losses(truth, None, data, draws, path, output), np.zeros(8)
    )
    for name, value in right.items():
        loss = record_losses(lambda p, x, t, y, v=value: v, None, data, draws, path, output)
        np.testing.assert_allclose(
            loss, jnp.mean((value - right[output]) ** 2, axis=(1, 2, 3)), rtol=1e-5
        )
        assert (name == output) == (not loss.any())


def test_a_perfect_prediction_of_diffusion_is_consistent_with_every_view():
    """What the network is asked for at x gives back the ends that made x, at the least and the
    noisiest level too.
    """
    true = Ends(*jax.random.normal(jax.random.key(1), (2, 8, *SHAPE)))
    time = 1 - jnp.array([1, 2, 10, 100, 500, 900, 999, 1000]) / 1000
    path = make_objective(ObjectiveConfig(kind="diffusion")).path
    x = path.interpolate(*true, time)
    alpha, sigma = (value.reshape(8, 1, 1, 1) for value in path.coefficients(time))
    for output in OUTPUTS["diffusion"]:
        ends = path.ends(output, path.view(output, true, time), x, time)
        np.testing.assert_allclose(alpha * ends.data, alpha * true.data, atol=2e-6)
        np.testing.assert_allclose(sigma * ends.noise, sigma * true.noise, atol=2e-6)


@pytest.mark.parametrize("weighted", [False, True])
def test_losses_by_time_are_those_of_numpy(weighted: bool):
    rng = np.random.default_rng(0)
    time = rng.uniform(size=500).astype(np.float32)
    time[:3] = 0.0, 1.0, 0.5
    losses = rng.uniform(size=500).astype(np.float32)
    weight = (
        (rng.uniform(size=500) < 0.7).astype(np.float32) if weighted else np.ones(500, np.float32)
    )
    taken = losses * weight
    sums, counts = losses_by_time(
        jnp.asarray(taken), jnp.asarray(time), jnp.asarray(weight) if weighted else None
    )
    np.testing.assert_allclose(
        sums, np.histogram(time, TIME_BINS, (0, 1), weights=taken)[0], rtol=1e-5
    )
    np.testing.assert_array_equal(counts, np.histogram(time, TIME_BINS, (0, 1), weights=weight)[0])
    assert sums.shape == counts.shape == (TIME_BINS,)


def test_a_loss_that_is_not_finite_stays_in_its_bin():
    sums, _ = losses_by_time(jnp.array([jnp.nan, 1.0]), jnp.array([0.05, 0.55]))
    np.testing.assert_array_equal(np.isnan(sums), np.arange(TIME_BINS) == 0)
