"""Decoding: the scale is undone exactly, pixels are quantised once, batches leave no trace."""

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pipelines.encoders.decode import (
    decode_batch_size,
    decode_raw,
    decode_samples,
    decoding_vae,
)
from pipelines.encoders.describe import describe_vae
from pipelines.encoders.weights import Vae
from schemas.errors import UserError
from schemas.manifest import Normalization, VaeInfo
from schemas.pixels import to_uint8

SIDE, LATENT = 8, 4


@pytest.fixture(scope="module")
def vae(tiny_vae: Path) -> VaeInfo:
    info = describe_vae(str(tiny_vae), None, "float32")
    assert info is not None
    return info


def test_decoded_pixels_are_the_vaes_output_quantised_once(vae: VaeInfo) -> None:
    raw = np.random.default_rng(1).normal(size=(5, LATENT, LATENT, 4)).astype(np.float32)
    output = np.asarray(decoding_vae(vae).decode(jnp.asarray(raw)))  # about [-1, 1]
    images = decode_raw(raw, vae, SIDE)
    assert images.shape == (5, SIDE, SIDE, 3)
    # One shape against another may differ by rounding, and so by one level where a value lies
    # between two.
    difference = np.abs(images.astype(int) - to_uint8(output).astype(int))
    assert difference.max() <= 1
    assert np.mean(difference > 0) < 0.01
    # A second scaling would send [-1, 1] to [-3, 1]: half of the pixels black.
    rescaled = to_uint8(2 * output - 1)
    assert np.abs(images.astype(int) - rescaled.astype(int)).mean() > 10


def test_an_image_does_not_depend_on_its_batch(vae: VaeInfo) -> None:
    raw = (
        np.random.default_rng(2)
        .normal(size=(decode_batch_size(SIDE) + 3, LATENT, LATENT, 4))
        .astype(np.float32)
    )
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
    assert [decode_batch_size(side) for side in (8, 32, 256, 4096)] == [256, 256, 4, 1]


@pytest.fixture
def roomy_for(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[int]]:
    """Makes the decoder run out of memory, as JAX does, on more images than told; returns the
    batches that it got.
    """

    def limit(most: int) -> list[int]:
        decode, sizes = Vae.decode, list[int]()

        def limited(self: Vae, z: jax.Array) -> jax.Array:
            sizes.append(len(z))
            return decode(self, z) if len(z) <= most else jnp.zeros((1 << 44,))

        monkeypatch.setattr(Vae, "decode", limited)
        monkeypatch.setattr("pipelines.encoders.decode._fitting", {})
        return sizes

    return limit


def test_a_batch_that_does_not_fit_is_halved(
    vae: VaeInfo, roomy_for: Callable[[int], list[int]]
) -> None:
    raw = np.random.default_rng(3).normal(size=(130, LATENT, LATENT, 4)).astype(np.float32)
    expected = decode_raw(raw, vae, SIDE)
    sizes = roomy_for(100)
    images = decode_raw(raw, vae, SIDE)
    assert sizes == [256, 128, 64, 64, 64]
    difference = np.abs(images.astype(int) - expected)
    assert difference.max() <= 1
    assert np.mean(difference > 0) < 0.01
    decode_raw(raw[:1], vae, SIDE)
    assert sizes[5:] == [64]  # it is remembered


def test_an_image_that_does_not_fit_is_told(
    vae: VaeInfo, roomy_for: Callable[[int], list[int]]
) -> None:
    sizes = roomy_for(0)
    with pytest.raises(
        UserError, match=r"^out of memory: VAE .* does not decode one image of 8 pixels; "
    ):
        decode_raw(np.zeros((1, LATENT, LATENT, 4), np.float32), vae, SIDE)
    assert sizes == [256, 128, 64, 32, 16, 8, 4, 2, 1]
