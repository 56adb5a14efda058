"""Averages made after a run against sums over its whole trajectory, and the algebra under them
against integrals.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding
from numpy.typing import NDArray

from flowtrain.state.ema import gamma_of_width
from flowtrain.state.posthoc import Density, combination, inner_product, parse_width, reconstruct
from flowtrain.state.snapshots import Snapshots
from schemas.config import TrainConfig
from schemas.errors import UserError

STEPS, EVERY = 1600, 200
CONFIG = TrainConfig(steps=STEPS, batch_size=1, ema_power=(0.05, 0.1), ema_snapshot_every=EVERY)
# Parameters that wander, as those of a run do: (STEPS, 12), in row k those after update k + 1.
TRAJECTORY = np.random.default_rng(0).standard_normal((STEPS, 12)).cumsum(axis=0)
TARGET = {
    "a": jax.ShapeDtypeStruct(
        (4,), jnp.float32, sharding=SingleDeviceSharding(jax.local_devices()[1])
    ),
    "b": {
        "c": jax.ShapeDtypeStruct(
            (2, 4), jnp.float32, sharding=SingleDeviceSharding(jax.local_devices()[0])
        )
    },
}


def _tree(flat: NDArray[np.float64]) -> dict[str, object]:
    return {"a": flat[:4].astype(np.float32), "b": {"c": flat[4:].reshape(2, 4).astype(np.float32)}}


def _flat(tree: object) -> NDArray[np.float64]:
    return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree)])


def _average(width: float, step: int) -> NDArray[np.float64]:
    """That of the trajectory at `step`: each update by the integral of the density over its unit of
    time.
    """
    edges = (np.arange(step + 1) / step) ** (gamma_of_width(width) + 1)
    return np.diff(edges) @ TRAJECTORY[:step]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run")
    with Snapshots(path, CONFIG) as snapshots:
        for step in range(EVERY, STEPS + 1, EVERY):
            snapshots.save(
                step, {f"power{width}": _tree(_average(width, step)) for width in CONFIG.ema_power}
            )
    return path


def _density(of: Density, tau: NDArray[np.float64]) -> NDArray[np.floating]:
    """Its values, written as the formula has them."""
    t, gamma = float(np.asarray(of.t)), float(np.asarray(of.gamma))
    return np.where(tau <= t, (gamma + 1) * (tau / t) ** gamma / t, 0.0)


def _times(end: float, cells: int = 400_000) -> NDArray[np.float64]:
    return np.asarray((np.arange(cells) + 0.5) * (end / cells), np.float64)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (Density(10.0, 17.0), Density(10.0, 6.9)),
        (Density(3.0, 17.0), Density(10.0, 6.9)),
        (Density(10.0, 0.0), Density(2.5, 40.0)),
        (Density(1e6, 300.0), Density(0.99e6, 250.0)),  # t^gamma is no number
    ],
)
def test_inner_products_are_integrals(a: Density, b: Density):
    # a cell must not straddle the jump of one of them
    end = float(min(np.asarray(a.t), np.asarray(b.t)))
    tau = _times(end)
    expected = (_density(a, tau) * _density(b, tau)).mean() * end
    assert inner_product(a, b) == pytest.approx(expected, rel=1e-5)
    assert inner_product(b, a) == pytest.approx(inner_product(a, b), rel=1e-9)


def test_a_snapshot_is_the_combination_of_itself():
    t, gamma = np.repeat([1e3, 2e3, 3e3], 2), np.tile([17.0, 6.9], 3)
    for place in range(6):
        weights, misfit = combination(Density(t, gamma), Density(t[place], gamma[place]))
        np.testing.assert_allclose(weights, np.eye(6)[place], atol=1e-8)
        assert misfit < 1e-6


def test_the_misfit_is_the_distance_of_the_profiles_and_no_weights_of_1_in_all_do_better():
    t, gamma = np.repeat([1.0, 2.0], 2), np.tile([17.0, 6.9], 2)
    wanted, tau = Density(2.0, 3.0), _times(2.0, 40_000)
    weights, misfit = combination(Density(t, gamma), wanted)

    def distance(weights: NDArray[np.float64]) -> float:
        made = sum(
            w * _density(Density(*one), tau) for w, *one in zip(weights, t, gamma, strict=True)
        )
        return float(
            np.sqrt(
                ((made - _density(wanted, tau)) ** 2).mean() / (_density(wanted, tau) ** 2).mean()
            )
        )

    assert weights.sum() == pytest.approx(1)
    assert misfit == pytest.approx(distance(weights), rel=1e-3)
    for change in 0.01 * (np.eye(4) - np.roll(np.eye(4), 1, axis=1)):
        assert distance(weights + change) > distance(weights) < distance(weights - change)


@pytest.mark.parametrize("width", [0.06, 0.08, 0.13])
def test_another_width_is_as_if_it_had_been_tracked(workdir: Path, width: float):
    """What is left of the error comes from the profile, so it is far below that of taking the
    nearest snapshot.
    """
    with Snapshots(workdir, CONFIG, read_only=True) as snapshots:
        step, made = reconstruct(snapshots, width, TARGET)
    assert step == STEPS
    expected = _average(width, STEPS)
    nearest = min(np.linalg.norm(_average(kept, STEPS) - expected) for kept in CONFIG.ema_power)
    assert np.linalg.norm(_flat(made) - expected) < nearest / 30


def test_a_kept_width_comes_back_and_where_it_is_wanted(workdir: Path):
    with Snapshots(workdir, CONFIG, read_only=True) as snapshots:
        _, made = reconstruct(snapshots, 0.1, TARGET)
    np.testing.assert_allclose(_flat(made), _average(0.1, STEPS), rtol=1e-5)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.sharding), made) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype, leaf.sharding), TARGET
    )


def test_an_earlier_step_is_made_of_what_there_was_then(workdir: Path):
    with Snapshots(workdir, CONFIG, read_only=True) as snapshots:
        step, made = reconstruct(snapshots, 0.08, TARGET, 800)
    assert step == 800
    expected = _average(0.08, 800)
    nearest = min(np.linalg.norm(_average(kept, 800) - expected) for kept in CONFIG.ema_power)
    assert np.linalg.norm(_flat(made) - expected) < nearest / 12


def test_what_cannot_be_made_is_one_line(workdir: Path, tmp_path: Path):
    with Snapshots(workdir, CONFIG, read_only=True) as snapshots:
        with pytest.raises(UserError, match=r"no snapshot of step 300; there are 200, 400, 600"):
            reconstruct(snapshots, 0.08, TARGET, 300)
        with pytest.raises(
            UserError,
            match=r"posthoc0.01 would be \d\d% off, made of 16 snapshots of power0.05, power0.1",
        ):
            reconstruct(snapshots, 0.01, TARGET)
    for config in (CONFIG, TrainConfig(steps=1, batch_size=1)):
        with (
            Snapshots(tmp_path, config, read_only=True) as snapshots,
            pytest.raises(UserError, match=r"no snapshots .* --set train.ema_power=\[0.05,0.1\]"),
        ):
            reconstruct(snapshots, 0.08, TARGET)


def test_names_of_weights():
    assert parse_width("posthoc0.13") == 0.13
    assert parse_width("ema") is parse_width("power0.13") is None
    for name in (
        "posthoc",
        "posthoc0",
        "posthoc0.28",
        "posthoc-0.1",
        "posthoc1e9",
        "posthocnan",
        "posthoc0.1x",
    ):
        with pytest.raises(UserError, match=r"as in posthoc0.1$"):
            parse_width(name)
