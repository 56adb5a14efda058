"""The optimizer against Adam written out, and the schedule at its corners."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flowtrain.optim import SCHEDULES, make_optimizer, make_schedule
from schemas.config import OptimizerConfig


def _at(schedule: optax.Schedule, step: int) -> float:
    return float(np.asarray(schedule(step)))


def _run(config: OptimizerConfig, gradients: np.ndarray, start: float = 1.0) -> float:
    optimizer = make_optimizer(config, len(gradients))
    params: Any = {"a": jnp.array([start])}
    state = optimizer.init(params)
    for gradient in gradients:
        updates, state = optimizer.update({"a": jnp.array([gradient])}, state, params)
        params = optax.apply_updates(params, updates)
    return float(params["a"][0])


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adam_with_decoupled_decay_equals_the_algorithm(decay: float):
    config = OptimizerConfig(learning_rate=0.01, beta1=0.8, beta2=0.9, weight_decay=decay)
    gradients = np.random.default_rng(0).standard_normal(20)
    x, m, v = 1.0, 0.0, 0.0
    for k, gradient in enumerate(gradients, start=1):
        m, v = 0.8 * m + 0.2 * gradient, 0.9 * v + 0.1 * gradient**2
        step = (m / (1 - 0.8**k)) / (math.sqrt(v / (1 - 0.9**k)) + 1e-8)
        x -= 0.01 * (step + decay * x)
    assert _run(config, gradients) == pytest.approx(x, rel=1e-5)


def test_clipping_bounds_the_gradient_that_adam_sees():
    optimizer = make_optimizer(OptimizerConfig(clip_norm=1.0, beta1=0.5), 1)
    params = {"a": jnp.zeros(2)}
    _, state = optimizer.update({"a": jnp.array([30.0, 40.0])}, optimizer.init(params), params)
    moment = next(part.mu for part in _flat(state) if hasattr(part, "mu"))
    np.testing.assert_allclose(moment["a"], [0.3, 0.4], rtol=1e-6)


def _flat(state: Any) -> list[Any]:
    return [leaf for part in state for leaf in (_flat(part) if type(part) is tuple else [part])]


def test_warmup_then_cosine():
    schedule = make_schedule(
        OptimizerConfig(learning_rate=0.1, warmup_steps=10, schedule="cosine"), steps=110
    )
    values = [_at(schedule, step) for step in range(111)]
    assert values[0] == pytest.approx(0.01)
    assert values[9] == pytest.approx(0.1)
    assert values[60] == pytest.approx(0.05, rel=1e-3)
    assert values[110] == pytest.approx(0.0, abs=1e-8)
    assert max(values) == pytest.approx(0.1)


def test_constant_without_warmup_is_constant_from_the_first_step():
    schedule = make_schedule(OptimizerConfig(learning_rate=0.1), steps=10)
    assert [_at(schedule, step) for step in (0, 5, 10**6)] == pytest.approx([0.1] * 3)


def test_linear_falls_to_nothing_at_the_last_step():
    schedule = make_schedule(
        OptimizerConfig(learning_rate=0.1, warmup_steps=10, schedule="linear"), steps=110
    )
    values = [_at(schedule, step) for step in (0, 4, 9, 10, 35, 60, 85, 109, 110, 200)]
    assert values == pytest.approx(
        [0.01, 0.05, 0.1, 0.1, 0.075, 0.05, 0.025, 0.001, 0, 0], abs=1e-7
    )


@pytest.mark.parametrize("warmup", [0, 10])
def test_rsqrt_is_flat_and_then_falls_with_the_root_of_the_step(warmup: int):
    """As EDM2 has it: the warm-up is on top, and moves nothing."""
    config = OptimizerConfig(
        learning_rate=0.1, warmup_steps=warmup, schedule="rsqrt", rsqrt_steps=50
    )
    schedule = make_schedule(config, steps=1000)
    for step in (0, 5, 9, 10, 49, 50, 51, 200, 5000):
        expected = 0.1 / math.sqrt(max(step / 50, 1)) * min((step + 1) / max(warmup, 1), 1)
        assert _at(schedule, step) == pytest.approx(expected, rel=1e-6), step


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_is_traced_with_the_number_of_the_update(name: str):
    """Also where the warm-up is longer than the run."""
    for steps, warmup in ((20, 0), (20, 5), (3, 5)):
        schedule = make_schedule(OptimizerConfig(warmup_steps=warmup, schedule=name), steps)  # type: ignore[arg-type]
        values = [_at(schedule, step) for step in range(20)]
        traced = (
            jax.jit(jax.vmap(schedule))(jnp.arange(20)) if name != "constant" or warmup else values
        )
        np.testing.assert_allclose(traced, values, rtol=1e-5, atol=1e-12)
        assert 0 <= min(values) <= max(values) <= 1e-4 * (1 + 1e-6)
