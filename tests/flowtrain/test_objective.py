"""The flow matching loss and the random numbers that it is made of."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowtrain.objective import draw, flow_loss
from schemas.config import ObjectiveConfig

SHAPE, NULL = (4, 4, 2), 10


def _batch(n: int, epoch: int = 0) -> dict[str, Any]:
    return {
        "epoch": jnp.full(n, epoch, jnp.int32),
        "index": jnp.arange(n, dtype=jnp.int32),
        "label": jnp.arange(n, dtype=jnp.int32) % NULL,
    }


def _draw(batch: dict[str, Any], **config: Any) -> Any:
    return draw(jax.random.key(0), batch, SHAPE, ObjectiveConfig(**config), NULL)


def test_draws_of_a_record_do_not_depend_on_how_the_batch_is_cut():
    batch, order = _batch(8), np.array([6, 1, 7, 0, 3, 2, 5, 4])
    whole = _draw(batch)
    parts = [_draw({name: value[order[i : i + 4]] for name, value in batch.items()}) for i in (0, 4)]
    for name in ("noise", "time", "label"):
        joined = np.concatenate([getattr(part, name) for part in parts])
        np.testing.assert_array_equal(joined, np.asarray(getattr(whole, name))[order])


def test_draws_differ_between_epochs_and_are_independent():
    first, second = _draw(_batch(200)), _draw(_batch(200, epoch=1))
    assert (first.time != second.time).all()
    noise = np.stack([np.asarray(first.noise).ravel(), np.asarray(second.noise).ravel()])
    assert abs(np.corrcoef(noise)[0, 1]) < 0.05  # 6400 numbers
    assert abs(noise.mean()) < 0.03
    assert abs(noise.std() - 1) < 0.03


def test_logit_normal_and_uniform_times_have_their_quantiles():
    batch = _batch(4000)
    normal = np.asarray(_draw(batch, logit_mean=0.5, logit_std=2.0).time)
    logits = np.log(normal / (1 - normal))
    np.testing.assert_allclose([logits.mean(), logits.std()], [0.5, 2.0], atol=0.1)
    uniform = np.asarray(_draw(batch, time="uniform").time)
    np.testing.assert_allclose(np.quantile(uniform, [0.1, 0.5, 0.9]), [0.1, 0.5, 0.9], atol=0.03)
    assert uniform.min() >= 0
    assert uniform.max() <= 1


def test_labels_are_dropped_to_the_null_class_at_the_rate_asked_for():
    batch = _batch(4000)
    assert np.mean(np.asarray(_draw(batch, label_drop=0.1).label) == NULL) == pytest.approx(0.1, abs=0.02)
    np.testing.assert_array_equal(_draw(batch, label_drop=0.0).label, batch["label"])


def test_the_loss_is_zero_for_the_true_velocity_only():
    draws, data = _draw(_batch(6)), jax.random.normal(jax.random.key(1), (6, *SHAPE))

    def truth(params: Any, x: jax.Array, t: jax.Array, label: jax.Array) -> jax.Array:
        at = t[:, None, None, None]
        np.testing.assert_allclose(x, (1 - at) * draws.noise + at * data, atol=1e-6)
        np.testing.assert_array_equal(label, draws.label)
        return data - draws.noise

    np.testing.assert_array_equal(flow_loss(truth, None, data, draws), np.zeros(6))
    loss = flow_loss(lambda p, x, t, y: jnp.zeros_like(x), None, data, draws)
    np.testing.assert_allclose(loss, jnp.mean((data - draws.noise) ** 2, axis=(1, 2, 3)), rtol=1e-6)
