"""The network of tiny autoencoders. Beside PyTorch: tests/parity/test_tiny.py."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pipelines.encoders.tiny import AutoencoderTiny
from pipelines.encoders.tiny_config import TinyConfig
from pipelines.encoders.weights import load_vae, save_vae, tensor_name
from pipelines.images import CROPS, decode_image
from schemas.pixels import to_uint8
from tests.pipelines.tiny_halves import random_halves, write_halves

SMALL = TinyConfig(
    encoder_block_out_channels=(16, 16),
    decoder_block_out_channels=(16, 16),
    num_encoder_blocks=(1, 1),
    num_decoder_blocks=(1, 1),
    pool=True,
)


def test_saved_and_loaded_is_the_same_network(tmp_path: Path):
    model = AutoencoderTiny(SMALL, rngs=nnx.Rngs(0))
    save_vae(model, SMALL, tmp_path)
    vae = load_vae(str(tmp_path))
    assert vae.config == SMALL
    x = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (2, 8, 8, 3)), jnp.float32)
    np.testing.assert_allclose(vae.encode(x)[0], model.encode(x)[0], atol=1e-5)
    z = vae.encode(x)[0]
    assert z.shape == (2, 4, 4, 4)
    np.testing.assert_allclose(vae.decode(z), model.decode(z), atol=1e-5)


def test_every_tensor_of_the_two_files_has_one_place(tmp_path: Path):
    halves = random_halves()
    vae = load_vae(str(write_halves(tmp_path, halves)))
    leaves = jax.tree_util.tree_leaves(vae.params)
    assert len(leaves) == sum(len(tensors) for tensors in halves.values())
    assert (
        tensor_name(("decoder", "layers", 2, "pool", 1, "scale"))
        == "decoder.layers.2.pool.1.weight"
    )


def test_bfloat16_is_near_and_returns_float32(tmp_path: Path):
    directory = str(write_halves(tmp_path, random_halves()))
    exact, narrow = load_vae(directory), load_vae(directory, "bfloat16")
    pixels = jnp.asarray(np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), dtype=np.uint8))
    z, rounded = exact.encode_pixels(pixels)[0], narrow.encode_pixels(pixels)[0]
    assert rounded.dtype == narrow.decode(z).dtype == jnp.float32
    error = float(jnp.abs(z - rounded).max() / jnp.abs(z).max())
    assert 1e-5 < error < 0.05


def test_latents_are_clamped_softly_where_they_enter_the_decoder(tmp_path: Path):
    vae = load_vae(str(write_halves(tmp_path, random_halves())))
    z = 100 * jnp.ones((1, 2, 2, 32))
    np.testing.assert_allclose(vae.decode(z), vae.decode(10 * z), atol=1e-5)


@pytest.mark.parametrize(
    ("folder", "least"), [("celebahq_sample", 30.0), ("imagenet_sample", 26.0)]
)
def test_taef2_reconstructs_photographs(shared_data: Path, folder: str, least: float):
    """In dB at 128 px; another image's latent gives 10 dB, exchanged red and blue 17."""
    vae = load_vae(str(shared_data / "taef2"))
    paths = sorted(
        path
        for path in (shared_data / folder).rglob("*")
        if path.suffix.lower() in (".jpg", ".jpeg")
    )
    pixels = np.stack(
        [CROPS["adm"](decode_image(path.read_bytes()), 128) for path in paths[::4][:6]]
    )
    (z,) = vae.encode_pixels(jnp.asarray(pixels))
    decoded = to_uint8(np.asarray(vae.decode(jnp.asarray(np.asarray(z, np.float16), jnp.float32))))
    error = ((decoded.astype(float) - pixels) ** 2).mean()
    assert 10 * np.log10(255**2 / error) > least
