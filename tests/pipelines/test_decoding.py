"""Decoding: the scale is undone exactly, pixels are quantised once, batches leave no trace."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from pipelines.decoding import decode_batch_size, decode_raw, decode_samples, decoding_vae, denormalise
from pipelines.vae_info import describe_vae
from schemas.errors import UserError
from schemas.manifest import Normalization, VaeInfo
from schemas.pixels import to_uint8

SIDE, LATENT = 8, 4


@pytest.fixture(scope="module")
def vae(tiny_vae: Path) -> VaeInfo:
    info = describe_vae(str(tiny_vae), None, "float32")
    assert info is not None
    return info


def test_denormalise_undoes_the_models_scale() -> None:
    rng = np.random.default_rng(0)
    raw = rng.normal(size=(3, 2, 2, 4)).astype(np.float32)
    normalization = Normalization(offset=(0.5, -1.0, 0.0, 2.0), scale=(0.2, 1.0, 3.0, 0.7))
    scaled = (raw - np.array(normalization.offset)) * np.array(normalization.scale)
    np.testing.assert_allclose(denormalise(scaled, normalization), raw, atol=1e-6)


def test_decoded_pixels_are_the_vaes_output_quantised_once(vae: VaeInfo) -> None:
    raw = np.random.default_rng(1).normal(size=(5, LATENT, LATENT, 4)).astype(np.float32)
    output = np.asarray(decoding_vae(vae).decode(jnp.asarray(raw)))  # about [-1, 1]
    images = decode_raw(raw, vae, SIDE)
    assert images.shape == (5, SIDE, SIDE, 3)
    # One shape against another may differ by rounding, and so by one level where a value lies between two.
    difference = np.abs(images.astype(int) - to_uint8(output).astype(int))
    assert difference.max() <= 1
    assert np.mean(difference > 0) < 0.01
    # A second scaling would send [-1, 1] to [-3, 1]: half of the pixels black.
    rescaled = to_uint8(2 * output - 1)
    assert np.abs(images.astype(int) - rescaled.astype(int)).mean() > 10


def test_an_image_does_not_depend_on_its_batch(vae: VaeInfo) -> None:
    raw = np.random.default_rng(2).normal(size=(decode_batch_size(SIDE) + 3, LATENT, LATENT, 4)).astype(np.float32)
    whole = decode_raw(raw, vae, SIDE)
    np.testing.assert_array_equal(decode_raw(raw[-2:], vae, SIDE), whole[-2:])
    np.testing.assert_array_equal(decode_raw(raw[100:130], vae, SIDE), whole[100:130])


def test_pixel_models_need_no_decoder() -> None:
    pixels = np.array([-1.0, 0.0, 1.0, 1.5], np.float32)
    samples = np.broadcast_to(pixels[:, None, None, None], (4, 2, 2, 3))
    identity = Normalization(offset=(0.0,) * 3, scale=(1.0,) * 3)
    images = decode_samples(samples, identity, None, 2)
    assert images[:, 0, 0, 0].tolist() == [0, 128, 255, 255]


def test_another_vae_in_the_same_place_is_refused(vae: VaeInfo) -> None:
    with pytest.raises(UserError, match="not those that made the latents"):
        decoding_vae(vae.model_copy(update={"sha256": "f" * 64}))
    with pytest.raises(UserError, match="is not that which made the latents"):
        decoding_vae(vae.model_copy(update={"config_sha256": "f" * 64}))


def test_batch_sizes_follow_the_resolution() -> None:
    assert [decode_batch_size(side) for side in (8, 32, 256, 4096)] == [256, 256, 16, 1]
