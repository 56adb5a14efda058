"""Our solvers beside diffusers' schedulers, with the same network function, step for step from the
same noise.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowtrain.flow.path import LinearPath, Path, VariancePreservingPath
from flowtrain.flow.solvers import Problem, integrate
from tests.parity.torch_vae import import_diffusers

diffusers = import_diffusers()
torch = pytest.importorskip("torch")
pytestmark = pytest.mark.parity

NOISE = np.random.default_rng(0).standard_normal((3, 4, 4, 2)).astype(np.float32)
BETAS = {
    "num_train_timesteps": 1000,
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "beta_schedule": "linear",
}
# As our grid: whole levels, evenly spaced from the noisiest, and a last step onto clean data.
SPACING = {"timestep_spacing": "trailing", "clip_sample": False, "prediction_type": "epsilon"}


def prediction(x: Any, level: Any, library: Any) -> Any:
    """Something bent in x and in the level k = 1 ... 1000, of the size of noise; the same for both
    libraries.
    """
    return 0.8 * x + 0.3 * library.sin(2 * x + level / 150) + 0.1 * library.cos(level / 40)


def ours(solver: str, path: Path, output: str, steps: int, keys: jax.Array) -> np.ndarray:
    def predict(x: jax.Array, t: jax.Array) -> jax.Array:
        level = (jnp.round if output == "epsilon" else jnp.asarray)((1 - t) * 1000)
        return prediction(x, level.reshape(-1, 1, 1, 1), jnp)

    problem = Problem(
        path, output, lambda x, t, label: predict(x, t), jnp.zeros(len(NOISE), jnp.int32)
    )
    return np.asarray(
        jax.jit(lambda x, k: integrate(solver, problem, x, k, steps).x)(jnp.asarray(NOISE), keys)
    )


def theirs(scheduler: Any, level: Callable[[Any], Any]) -> np.ndarray:
    x = torch.from_numpy(NOISE.copy())
    for t in scheduler.timesteps:
        x = scheduler.step(prediction(x, level(t), torch), t, x).prev_sample
    return x.numpy()


def check(found: np.ndarray, expected: np.ndarray, most: float) -> None:
    error = float(np.abs(found - expected).max() / np.abs(expected).max())
    print(error)  # noqa: T201 (shown with `pytest -s`, and when the test fails)
    assert error < most


@pytest.fixture
def keys() -> jax.Array:
    return jax.random.split(jax.random.key(1), len(NOISE))


@pytest.mark.parametrize("steps", [10, 50])
def test_ddim(steps: int, keys: jax.Array) -> None:
    scheduler = diffusers.DDIMScheduler(**BETAS, **SPACING, set_alpha_to_one=True)
    scheduler.set_timesteps(steps)
    found = ours("ddim", VariancePreservingPath(), "epsilon", steps, keys)
    check(found, theirs(scheduler, lambda t: t + 1), 1e-5)


@pytest.mark.parametrize("steps", [10, 50])
def test_ddpm(steps: int, keys: jax.Array, monkeypatch: pytest.MonkeyPatch) -> None:
    """With our noise in the place of theirs."""
    scheduler = diffusers.DDPMScheduler(**BETAS, **SPACING, variance_type="fixed_small")
    scheduler.set_timesteps(steps)
    numbers = iter(range(steps))

    def our_noise(shape: Any, **_: Any) -> Any:
        fold = jax.vmap(jax.random.fold_in, (0, None))(keys, next(numbers))
        return torch.from_numpy(
            np.array(jax.vmap(lambda key: jax.random.normal(key, shape[1:]))(fold))
        )

    monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", our_noise)
    found = ours("ddpm", VariancePreservingPath(), "epsilon", steps, keys)
    check(found, theirs(scheduler, lambda t: t + 1), 1e-5)
    assert next(numbers, None) is None  # one draw a step


@pytest.mark.parametrize("solver", ["euler", "ddim"])
@pytest.mark.parametrize("steps", [10, 50])
def test_flow_euler(solver: str, steps: int, keys: jax.Array) -> None:
    """Given our times as sigmas = 1 - t; its network predicts noise - data."""
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(sigmas=1 - np.arange(steps) / steps)
    found = ours(solver, LinearPath(), "negative_velocity", steps, keys)
    check(found, theirs(scheduler, lambda t: t), 2e-6)
