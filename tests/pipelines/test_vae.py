"""The network against a golden file from diffusers' PyTorch class, and its config.

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

from pipelines.vae import VaeConfig
from pipelines.vae_weights import Vae, load_vae
from schemas.errors import UserError
from tests.parity.torch_vae import LARGE_MEAN, feeds_a_norm, relative_error

GOLDEN = Path(__file__).parent / "golden" / "vae.safetensors"
BLOCKS = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
SMALL = {"block_out_channels": [8, 16], "norm_num_groups": 4, **BLOCKS}


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with safe_open(GOLDEN, framework="numpy") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)


def golden_vae(golden: dict[str, np.ndarray], directory: Path, case: str, dtype: str = "float32") -> Vae:
    """The golden file's weights, written out as a diffusers directory and read back."""
    with safe_open(GOLDEN, framework="numpy") as file:
        config = json.loads(file.metadata()["config"])
    weights = {name.removeprefix("weights/"): value for name, value in golden.items() if name.startswith("weights/")}
    if case == "large":
        added = np.float32(LARGE_MEAN)
        weights = {name: value + added if feeds_a_norm(name) else value for name, value in weights.items()}
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


def test_bfloat16_is_near_and_returns_float32(golden: dict[str, np.ndarray], tmp_path: Path) -> None:
    vae = golden_vae(golden, tmp_path, "plain", "bfloat16")
    mean, logvar = vae.encode(jnp.asarray(golden["inputs"]))
    decoded = vae.decode(jnp.asarray(golden["plain/mean"]))
    assert {mean.dtype, logvar.dtype, decoded.dtype} == {jnp.dtype("float32")}
    error = relative_error(decoded, golden["plain/decoded"])
    assert 1e-4 < error < 5e-2  # below: the compute type was not used at all


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


def test_config_of_stable_diffusion_3_as_published() -> None:
    config = VaeConfig.from_dict(
        {
            "_class_name": "AutoencoderKL",
            "_diffusers_version": "0.29.0",
            "act_fn": "silu",
            "block_out_channels": [128, 256, 512, 512],
            "down_block_types": ["DownEncoderBlock2D"] * 4,
            "force_upcast": True,
            "in_channels": 3,
            "latent_channels": 16,
            "latents_mean": None,
            "layers_per_block": 2,
            "norm_num_groups": 32,
            "out_channels": 3,
            "sample_size": 1024,
            "scaling_factor": 1.5305,
            "shift_factor": 0.0609,
            "up_block_types": ["UpDecoderBlock2D"] * 4,
            "use_post_quant_conv": False,
            "use_quant_conv": False,
        }
    )
    assert (config.factor, config.latent_channels, config.scaling_factor, config.shift_factor) == (
        8,
        16,
        1.5305,
        0.0609,
    )
    assert (config.use_quant_conv, config.use_post_quant_conv, config.mid_block_add_attention) == (False, False, True)
    assert VaeConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_null_shift_is_no_shift_and_old_files_get_diffusers_defaults() -> None:
    config = VaeConfig.from_dict({**SMALL, "shift_factor": None})
    assert (config.shift_factor, config.scaling_factor, config.use_quant_conv) == (0.0, 0.18215, True)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"_class_name": "AutoencoderTiny"}, "AutoencoderTiny"),
        ({"down_block_types": ["DownEncoderBlock2D", "AttnDownEncoderBlock2D"]}, "AttnDownEncoderBlock2D"),
        ({"up_block_types": ["UpDecoderBlock2D", "OddBlock"]}, "OddBlock"),
        ({"up_block_types": ["UpDecoderBlock2D"]}, "up_block_types"),
        ({"act_fn": "sine"}, "sine"),
        ({"norm_num_groups": 5}, "norm_num_groups 5"),
        ({"layers_per_block": 0}, "layers_per_block"),
        ({"latent_channels": "four"}, "latent_channels"),
        ({"block_out_channels": 8}, "block_out_channels"),
        ({"scaling_factor": "big"}, "scaling_factor"),
    ],
)
def test_unsupported_configs_are_named_in_one_line(change: dict[str, object], named: str) -> None:
    with pytest.raises(UserError, match=named) as caught:
        VaeConfig.from_dict({**SMALL, **change})
    assert "\n" not in str(caught.value)


def test_needs_only_jax_flax_and_numpy() -> None:
    program = """
import sys
REFUSED = {"pydantic", "safetensors", "apache_beam", "PIL", "click", "tensorflow", "torch", "grain"}
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in REFUSED:
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
import pipelines.vae, pipelines.vae_weights
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
