"""Moving averages against sums that are written out, and the widths of power functions against
integrals.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.typing import NDArray

from flowtrain.state.ema import (
    Rate,
    average_names,
    averages,
    gamma_of_width,
    power_names,
    update_ema,
)
from schemas.config import TrainConfig

CONFIG = TrainConfig(
    steps=1, batch_size=1, ema_decay=0.9, ema_extra=(0.99, 0.9999999), ema_power=(0.05, 0.2)
)


def _average(rate: Rate, values: NDArray[np.float64], start: float) -> float:
    """The average after all updates with `values`, as a run makes it."""
    updates = jnp.arange(1, len(values) + 1)

    def step(ema: jax.Array, update: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        number, value = update
        return update_ema(ema, value, rate(number)), None

    return float(
        jax.lax.scan(step, jnp.float32(start), (updates, jnp.asarray(values, jnp.float32)))[0]
    )


def test_names_say_the_numbers_in_full():
    assert average_names(CONFIG) == ("ema", "ema0.99", "ema0.9999999", "power0.05", "power0.2")
    assert power_names(CONFIG) == ("power0.05", "power0.2")
    assert tuple(averages(CONFIG)) == average_names(CONFIG)


@pytest.mark.parametrize(("name", "decay"), [("ema", 0.9), ("ema0.99", 0.99)])
def test_a_constant_average_is_the_weighted_sum(name: str, decay: float):
    values = np.random.default_rng(0).standard_normal(50)
    weights = (1 - decay) * decay ** np.arange(50)[::-1]
    expected = decay**50 * 3.0 + weights @ values
    assert _average(averages(CONFIG)[name], values, start=3.0) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("name", "width"), [("power0.05", 0.05), ("power0.2", 0.2)])
@pytest.mark.parametrize("updates", [1, 2, 300])
def test_a_power_average_weighs_each_update_by_the_integral_of_the_density(
    name: str, width: float, updates: int
):
    """What the average started from does not count."""
    values = np.random.default_rng(1).standard_normal(updates)
    exponent = gamma_of_width(width) + 1
    edges = (np.arange(updates + 1) / updates) ** exponent
    expected = np.diff(edges) @ values
    assert _average(averages(CONFIG)[name], values, start=1e3) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("update", [1, 10, 1_000, 1_000_000, 20_000_000])
def test_rates_are_exact_to_rounding_also_late_in_a_run(update: int):
    """1 - 1/k in float32 would be wrong by several percent after a million updates, and 0 later."""
    for name, width in (("power0.05", 0.05), ("power0.2", 0.2)):
        expected = 1 - ((update - 1) / update) ** (gamma_of_width(width) + 1)
        assert float(averages(CONFIG)[name](jnp.int32(update))) == pytest.approx(expected, rel=1e-6)
    assert float(averages(CONFIG)["ema0.9999999"](jnp.int32(update))) == pytest.approx(
        1e-7, rel=1e-6
    )


@pytest.mark.parametrize("width", [0.01, 0.05, 0.1, 0.2, 0.28, 12**-0.5])
def test_the_width_is_the_deviation_of_the_density(width: float):
    gamma = gamma_of_width(width)
    tau = (np.arange(1_000_000) + 0.5) / 1_000_000
    density = (gamma + 1) * tau**gamma
    assert density.mean() == pytest.approx(1, rel=1e-6)
    mean = (density * tau).mean()
    assert np.sqrt((density * (tau - mean) ** 2).mean()) == pytest.approx(width, rel=1e-5)


def test_a_density_cannot_be_wider_than_the_flat_one():
    with pytest.raises(ValueError, match=r"must be at most 0\.2887"):
        gamma_of_width(0.3)


def test_equal_parameters_are_a_fixed_point():
    values = np.random.default_rng(0).standard_normal((50, 3)).astype(np.float32)
    np.testing.assert_array_equal(update_ema({"a": values}, {"a": values}, 1e-4)["a"], values)
