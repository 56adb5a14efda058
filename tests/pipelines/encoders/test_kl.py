"""The network against a golden file from diffusers' PyTorch class.

`python -m tests.parity.make_vae_golden` writes the file anew (it needs torch and diffusers).
"""

import json
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from pipelines.encoders.weights import Vae, load_vae
from tests.parity.torch_vae import LARGE_MEAN, feeds_a_norm, relative_error

GOLDEN = Path(__file__).parent / "golden" / "vae.safetensors"


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with safe_open(GOLDEN, framework="numpy") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)


def golden_vae(
    golden: dict[str, np.ndarray], directory: Path, case: str, dtype: str = "float32"
) -> Vae:
    """The golden file's weights, written out as a diffusers directory and read back."""
    with safe_open(GOLDEN, framework="numpy") as file:
        config = json.loads(file.metadata()["config"])
    weights = {
        name.removeprefix("weights/"): value
        for name, value in golden.items()
        if name.startswith("weights/")
    }
    if case == "large":
        added = np.float32(LARGE_MEAN)
        weights = {
            name: value + added if feeds_a_norm(name) else value for name, value in weights.items()
        }
    (directory / "config.json").write_text(json.dumps(config))
    save_file(weights, directory / "diffusion_pytorch_model.safetensors")
    return load_vae(str(directory), dtype)


@pytest.mark.parametrize("case", ["plain", "large"])
def test_equals_the_pytorch_class(golden: dict[str, np.ndarray], tmp_path: Path, case: str) -> None:
    vae = golden_vae(golden, tmp_path, case)
    mean, logvar = vae.encode(jnp.asarray(golden["inputs"]))
    decoded = vae.decode(jnp.asarray(golden[f"{case}/mean"]))
    assert (mean.shape, decoded.shape) == ((2, 4, 6, 4), (2, 16, 24, 3))
    assert relative_error(mean, golden[f"{case}/mean"]) < 1e-4
    assert relative_error(logvar, golden[f"{case}/logvar"]) < 1e-4
    assert relative_error(decoded, golden[f"{case}/decoded"]) < 1e-4


def test_bfloat16_is_near_and_returns_float32(
    golden: dict[str, np.ndarray], tmp_path: Path
) -> None:
    vae = golden_vae(golden, tmp_path, "plain", "bfloat16")
    mean, logvar = vae.encode(jnp.asarray(golden["inputs"]))
    decoded = vae.decode(jnp.asarray(golden["plain/mean"]))
    assert {mean.dtype, logvar.dtype, decoded.dtype} == {jnp.dtype("float32")}
    error = relative_error(decoded, golden["plain/decoded"])
    assert 1e-4 < error < 5e-2  # below: the compute type was not used at all
    # the last layers add up in float32, and do not round their results either
    for values in (
        mean,
        logvar,
        decoded,
    ):
        assert float((values.astype(jnp.bfloat16).astype(jnp.float32) != values).mean()) > 0.9


def test_logvar_is_clipped(golden: dict[str, np.ndarray], tmp_path: Path) -> None:
    bias = np.array([0, 0, 0, 0, 1e3, -1e3, 0, 0], np.float32)
    vae = golden_vae(golden | {"weights/quant_conv.bias": bias}, tmp_path, "plain")
    _, logvar = vae.encode(jnp.asarray(golden["inputs"]))
    assert float(logvar[..., 0].min()) == 20
    assert float(logvar[..., 1].max()) == -30


def test_images_of_a_batch_do_not_mix(golden: dict[str, np.ndarray], tmp_path: Path) -> None:
    vae = golden_vae(golden, tmp_path, "plain")
    images = jnp.asarray(golden["inputs"])
    before, after = vae.encode(images)[0], vae.encode(images.at[1].set(0))[0]
    np.testing.assert_array_equal(before[0], after[0])
    assert float(jnp.abs(before[1] - after[1]).max()) > 1e-3


def test_needs_only_jax_flax_and_numpy() -> None:
    program = """
import sys
REFUSED = {"pydantic", "safetensors", "apache_beam", "PIL", "click", "tensorflow", "torch", "grain"}
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in REFUSED:
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
import pipelines.encoders.kl, pipelines.encoders.weights
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
