"""AutoencoderKL beside diffusers' PyTorch class, live, with random weights."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pipelines.encoders.locate import EMBEDDED_DIRECTORY
from pipelines.encoders.weights import load_vae, save_vae
from tests.parity.torch_vae import (
    SIXTEEN_CHANNELS,
    STABLE_DIFFUSION,
    import_diffusers,
    moments_and_image,
    random_vae,
    relative_error,
    save,
    with_old_names,
)

diffusers = import_diffusers()
pytestmark = pytest.mark.parity


def images(size: int, count: int = 1) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (count, size, size, 3)).astype(np.float32)


def compare(model: Any, directory: Path, x: np.ndarray) -> dict[str, float]:
    """Relative errors of mean, logvar and decode, both sides in float32."""
    expected = moments_and_image(model, x)
    vae = load_vae(str(directory))
    mean, logvar = vae.encode(jnp.asarray(x))
    decoded = vae.decode(jnp.asarray(expected["mean"]))
    found = {"mean": mean, "logvar": logvar, "decoded": decoded}
    errors = {name: relative_error(value, expected[name]) for name, value in found.items()}
    print(errors)  # noqa: T201 (shown with `pytest -s`, and when the test fails)
    return errors


@pytest.mark.parametrize("large_means", [False, True], ids=["ordinary", "large_means"])
def test_stable_diffusion(tmp_path: Path, large_means: bool) -> None:
    model = random_vae(STABLE_DIFFUSION, seed=0, large_means=large_means)
    errors = compare(model, save(model, tmp_path), images(64))
    assert max(errors.values()) < 1e-4


@pytest.mark.parametrize("act_fn", ["silu", "gelu", "relu", "mish"])
def test_sixteen_channels_without_quant_convolutions(tmp_path: Path, act_fn: str) -> None:
    model = random_vae({**SIXTEEN_CHANNELS, "act_fn": act_fn}, seed=1, large_means=False)
    errors = compare(model, save(model, tmp_path), images(32, count=2))
    assert max(errors.values()) < 1e-4
    config = load_vae(str(tmp_path)).config
    assert (config.factor, config.scaling_factor, config.shift_factor) == (4, 1.5305, 0.0609)


@pytest.mark.parametrize("as_convolution", [False, True])
def test_old_attention_names(tmp_path: Path, as_convolution: bool) -> None:
    """As checkpoints of 2022 name and shape them; today's diffusers still reads the linear ones."""
    config = {"block_out_channels": [16, 32], "norm_num_groups": 8}
    model = random_vae(config, seed=2, large_means=False)
    save(model, tmp_path)
    with_old_names(tmp_path, as_convolution)
    if not as_convolution:
        again = diffusers.AutoencoderKL.from_pretrained(tmp_path, low_cpu_mem_usage=False)
        expected = moments_and_image(model, images(16))
        assert (
            relative_error(moments_and_image(again, images(16))["decoded"], expected["decoded"])
            == 0
        )
    assert max(compare(model, tmp_path, images(16)).values()) < 1e-4


def test_written_weights_are_read_by_diffusers(tmp_path: Path) -> None:
    model = random_vae(SIXTEEN_CHANNELS, seed=3, large_means=False)
    vae = load_vae(str(save(model, tmp_path / "theirs")))
    save_vae(nnx.merge(vae.graphdef, vae.params), vae.config, tmp_path / "ours")
    again = diffusers.AutoencoderKL.from_pretrained(tmp_path / "ours", low_cpu_mem_usage=False)
    assert (again.config.scaling_factor, again.config.shift_factor) == (1.5305, 0.0609)
    theirs, ours = model.state_dict(), again.state_dict()
    assert theirs.keys() == ours.keys()
    assert all((theirs[name] == ours[name]).all() for name in theirs)


def test_the_embedded_vae_is_a_diffusers_vae() -> None:
    model = diffusers.AutoencoderKL.from_pretrained(
        EMBEDDED_DIRECTORY, low_cpu_mem_usage=False
    ).eval()
    assert max(compare(model, EMBEDDED_DIRECTORY, images(32)).values()) < 1e-4
