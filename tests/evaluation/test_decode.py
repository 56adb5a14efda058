"""Decoding: the scale is undone exactly, pixels are quantised once, batches leave no trace."""

import jax.numpy as jnp
import numpy as np
import pytest

from evaluation.decode import decode_batch_size, decode_raw, decode_samples, denormalise
from evaluation.models import vae as load
from schemas.errors import UserError
from schemas.manifest import Normalization
from schemas.pixels import to_uint8
from tests.evaluation.conftest import World
from tests.evaluation.tiny import LATENT, SIDE, TinyExtractor


def test_denormalise_undoes_the_models_scale() -> None:
    rng = np.random.default_rng(0)
    raw = rng.normal(size=(3, 2, 2, 4)).astype(np.float32)
    normalization = Normalization(offset=(0.5, -1.0, 0.0, 2.0), scale=(0.2, 1.0, 3.0, 0.7))
    scaled = (raw - np.array(normalization.offset)) * np.array(normalization.scale)
    np.testing.assert_allclose(denormalise(scaled, normalization), raw, atol=1e-6)


def test_decoded_pixels_are_the_vaes_output_quantised_once(world: World) -> None:
    raw = np.random.default_rng(1).normal(size=(5, LATENT, LATENT, 4)).astype(np.float32)
    output = np.asarray(load(world.vae).decode(jnp.asarray(raw)))  # about [-1, 1]
    images = decode_raw(raw, world.vae, SIDE)
    assert images.shape == (5, SIDE, SIDE, 3)
    # One shape against another may differ by rounding, and so by one level where a value lies between two.
    difference = np.abs(images.astype(int) - to_uint8(output).astype(int))
    assert difference.max() <= 1
    assert np.mean(difference > 0) < 0.01
    # A second scaling would send [-1, 1] to [-3, 1]: half of the pixels black. The features would tell.
    direct, _ = TinyExtractor()(to_uint8(output))
    rescaled, _ = TinyExtractor()(to_uint8(2 * output - 1))
    features, _ = TinyExtractor()(images)
    np.testing.assert_allclose(features, direct, atol=5e-3)
    assert np.abs(rescaled - direct).max() > 0.1


def test_an_image_does_not_depend_on_its_batch(world: World) -> None:
    raw = np.random.default_rng(2).normal(size=(decode_batch_size(SIDE) + 3, LATENT, LATENT, 4)).astype(np.float32)
    whole = decode_raw(raw, world.vae, SIDE)
    np.testing.assert_array_equal(decode_raw(raw[-2:], world.vae, SIDE), whole[-2:])
    np.testing.assert_array_equal(decode_raw(raw[100:130], world.vae, SIDE), whole[100:130])


def test_pixel_models_need_no_decoder() -> None:
    pixels = np.array([-1.0, 0.0, 1.0, 1.5], np.float32)
    samples = np.broadcast_to(pixels[:, None, None, None], (4, 2, 2, 3))
    identity = Normalization(offset=(0.0,) * 3, scale=(1.0,) * 3)
    images = decode_samples(samples, identity, None, 2)
    assert images[:, 0, 0, 0].tolist() == [0, 128, 255, 255]


def test_another_vae_in_the_same_place_is_refused(world: World) -> None:
    with pytest.raises(UserError, match="not those that made the latents"):
        load(world.vae.model_copy(update={"sha256": "f" * 64}))


def test_batch_sizes_follow_the_resolution() -> None:
    assert [decode_batch_size(side) for side in (8, 32, 256, 4096)] == [256, 256, 16, 1]
