"""Tiny autoencoders beside PyTorch: diffusers' class with random weights, TAEF2 with its own
through the command.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from pipelines.dataset.finished import LatentDataset
from pipelines.encoders.decode import decode_records
from pipelines.encoders.weights import load_vae
from pipelines.images import CROPS, decode_image
from tests.parity.torch_tiny import decode, encode, load_taef2, make_halves
from tests.parity.torch_vae import import_diffusers, relative_error, save

diffusers = import_diffusers()
pytestmark = pytest.mark.parity

VARIANTS = {
    "taesd": {"latent_channels": 4},
    "taesd3": {"latent_channels": 16, "shift_factor": 0.1159, "scaling_factor": 0.3611},
    "other sizes": {
        "encoder_block_out_channels": [16, 16, 16],
        "decoder_block_out_channels": [32, 32, 32],
        "num_encoder_blocks": [1, 2, 1],
        "num_decoder_blocks": [2, 1, 1],
        "act_fn": "silu",
    },
}


def images(size: int, count: int = 2) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (count, size, size, 3)).astype(np.float32)


def random_tiny(config: dict[str, Any]) -> Any:
    """A diffusers AutoencoderTiny, float32, whose biases are not near zero."""
    import torch

    torch.manual_seed(0)
    model = diffusers.AutoencoderTiny(**config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.uniform_(-0.3, 0.3)
    return model


@pytest.mark.parametrize("name", VARIANTS)
def test_diffusers_class_with_random_weights(tmp_path: Path, name: str) -> None:
    import torch

    model = random_tiny(VARIANTS[name])
    vae = load_vae(str(save(model, tmp_path)))
    x = images(32)
    with torch.no_grad():
        latents = model.encode(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).latents
        decoded = model.decode(latents).sample
    expected = {
        part: value.numpy().transpose(0, 2, 3, 1)
        for part, value in (("z", latents), ("x", decoded))
    }
    (found,) = vae.encode(jnp.asarray(x))
    assert relative_error(found, expected["z"]) < 1e-4
    assert relative_error(vae.decode(jnp.asarray(expected["z"])), expected["x"]) < 1e-4
    scaling = VARIANTS[name].get("scaling_factor", 1.0)
    assert (vae.config.scaling_factor, vae.config.factor) == (
        scaling,
        4 if name == "other sizes" else 8,
    )


@pytest.mark.parametrize(("channels", "pool"), [(4, False), (16, False), (32, True)])
def test_the_authors_two_files_with_random_weights(
    tmp_path: Path, channels: int, pool: bool
) -> None:
    import torch

    torch.manual_seed(channels)
    networks = dict(zip(("encoder", "decoder"), make_halves(channels, pool), strict=True))
    for half, network in networks.items():
        tensors = {key: value.numpy() for key, value in network.state_dict().items()}
        save_file(tensors, tmp_path / f"random_{half}.safetensors")
    vae = load_vae(str(tmp_path))
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    latents = encode(networks["encoder"], pixels)
    assert relative_error(vae.encode_pixels(jnp.asarray(pixels))[0], latents) < 1e-4
    with torch.no_grad():
        decoded = networks["decoder"](torch.from_numpy(latents.transpose(0, 3, 1, 2).copy()))
    assert (
        relative_error(
            vae.decode(jnp.asarray(latents)), 2 * decoded.numpy().transpose(0, 2, 3, 1) - 1
        )
        < 1e-4
    )


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Mean over images, in dB."""
    error = ((a.astype(np.float64) - b) ** 2).mean(axis=(1, 2, 3))
    return float((10 * np.log10(255**2 / error)).mean())


@pytest.mark.parametrize(
    ("folder", "resolution"), [("celebahq_sample", 256), ("imagenet_sample", 256)]
)
def test_taef2_through_the_command_on_all_sample_images(
    shared_data: Path, tmp_path: Path, folder: str, resolution: int
) -> None:
    """What was stored decodes as well as PyTorch's own latents do, image by image and on the
    whole.
    """
    out = tmp_path / "latents"
    command = [
        sys.executable,
        "-c",
        "from flowtrain.cli import main; main()",
        "preprocess",
        str(shared_data / folder),
    ]
    command += [
        str(out),
        "--vae",
        str(shared_data / "taef2"),
        "--resolution",
        str(resolution),
        "--shards",
        "1",
    ]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    dataset = LatentDataset(out)
    assert json.loads(done.stdout)["records"] == len(dataset) > 0
    encoder, decoder = load_taef2(shared_data / "taef2")
    ours, theirs = [], []
    for record in dataset.records():
        picture = decode_image((shared_data / folder / record.key).read_bytes())
        pixels = CROPS["adm"](picture, resolution)[None]
        latents = encode(encoder, pixels)
        # float16 of values up to 16
        assert np.abs(record.tensors["latent"] - latents[0]).max() < 0.02, record.key
        ours.append(psnr(pixels, decode_records(dataset.manifest, [record])))
        theirs.append(psnr(pixels, decode(decoder, latents)))
    print(f"{folder}: {np.mean(ours):.3f} dB, PyTorch {np.mean(theirs):.3f} dB")  # noqa: T201
    assert np.mean(ours) > np.mean(theirs) - 0.1
    assert np.min(np.subtract(ours, theirs)) > -0.1


def test_a_changed_tensor_is_seen(shared_data: Path, tmp_path: Path) -> None:
    """The comparison above would notice one bias that is off by a tenth."""
    for half in ("encoder", "decoder"):
        tensors = load_file(shared_data / "taef2" / f"taef2_{half}.safetensors")
        if half == "encoder":
            tensors["14.bias"] = tensors["14.bias"] + np.float16(0.1)
        save_file(tensors, tmp_path / f"taef2_{half}.safetensors")
    encoder, _ = load_taef2(shared_data / "taef2")
    pixels = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), dtype=np.uint8)
    (found,) = load_vae(str(tmp_path)).encode_pixels(jnp.asarray(pixels))
    assert np.abs(np.asarray(found) - encode(encoder, pixels)).max() > 0.05
