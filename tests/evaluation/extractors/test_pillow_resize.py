import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from evaluation.extractors.pillow_resize import keys_cubic, pillow_bicubic


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [(64, 64, 56), (9, 7, 56), (56, 90, 56), (40, 56, 56), (300, 17, 31), (1, 1, 5)],
)
def test_equals_pillow_bit_for_bit(height, width, size):
    noise = np.random.default_rng(0).integers(0, 256, (2, height, width, 3), dtype=np.uint8)
    extremes = (noise > 127).astype(np.uint8) * 255  # whose overshoots are cut on both sides
    images = np.concatenate([noise, extremes])
    expected = [
        np.asarray(Image.fromarray(i).resize((size, size), Image.Resampling.BICUBIC))
        for i in images
    ]
    found = jax.jit(pillow_bicubic, static_argnums=1)(images, size)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, expected)


def test_the_size_itself_passes_untouched():
    images = np.random.default_rng(1).integers(0, 256, (1, 12, 12, 3), dtype=np.uint8)
    np.testing.assert_array_equal(pillow_bicubic(jnp.asarray(images), 12), images)


@pytest.mark.parametrize("a", [-0.5, -0.75])
def test_the_kernel_interpolates_and_sums_to_one(a):
    np.testing.assert_allclose(keys_cubic(np.arange(-3.0, 4), a), [0, 0, 0, 1, 0, 0, 0], atol=1e-15)
    shifts = np.linspace(0, 1, 11)[:, None] + np.arange(-2, 2)
    np.testing.assert_allclose(keys_cubic(shifts, a).sum(axis=1), 1, atol=1e-12)
    np.testing.assert_allclose(keys_cubic(np.array([0.5, 1.5]), a), [0.5 - a / 8, a / 8])
