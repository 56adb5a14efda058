from pathlib import Path

import numpy as np
import pytest

from pipelines.encoders import VaeEncoder, load_encoder
from pipelines.vae_weights import load_vae, vae_digest
from schemas.errors import UserError
from schemas.pixels import from_uint8
from tests.pipelines.running import plan


def test_moments_are_those_of_the_vae_in_float16(tiny_vae: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    encoder = VaeEncoder(str(tiny_vae), "float32", vae_digest(tiny_vae))
    tensors = encoder.start(pixels)()
    for ours, theirs in zip(
        (tensors["mean"], tensors["logvar"]), load_vae(str(tiny_vae)).encode(from_uint8(pixels)), strict=True
    ):
        assert ours.dtype == np.float16
        np.testing.assert_array_equal(ours, np.asarray(theirs).astype(np.float16))
    decoded = encoder.reconstruct(tensors)
    assert decoded.shape == pixels.shape
    assert decoded.dtype == np.uint8


def test_other_weights_than_planned_are_refused(tiny_vae: Path) -> None:
    with pytest.raises(UserError, match="give all workers the same weights"):
        VaeEncoder(str(tiny_vae), "float32", "0" * 64)


def test_pixels_pass_through(photos: Path, tmp_path: Path) -> None:
    encoder = load_encoder(plan(photos, tmp_path / "out").settings)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    np.testing.assert_array_equal(encoder.reconstruct(encoder.start(pixels)()), pixels)
