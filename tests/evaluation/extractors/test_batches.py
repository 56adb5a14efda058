import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evaluation.extractors.batches import in_batches

BATCH = 4


def sums(images: np.ndarray) -> tuple[jax.Array, jax.Array]:
    """A network that insists on its batch: sums of channels, and no logits."""
    assert images.shape == (BATCH, 2, 3, 3)
    return jnp.asarray(images, jnp.float32).sum(axis=(1, 2)), jnp.zeros((BATCH, 0))


@pytest.mark.parametrize("count", [0, 1, 4, 9])
def test_every_image_once_in_order(count):
    images = np.random.default_rng(0).integers(0, 256, (count, 2, 3, 3), dtype=np.uint8)
    found = in_batches(sums, images, BATCH)
    np.testing.assert_array_equal(found.features, images.sum(axis=(1, 2)).astype(np.float32))
    assert (found.logits.shape, found.spatial) == ((count, 0), None)


def test_two_batches_are_computed_at_once():
    both = threading.Barrier(2, timeout=10)  # breaks where one waits for the other's end

    def meet(images: np.ndarray) -> tuple[jax.Array, jax.Array]:
        both.wait()
        return sums(images)

    images = np.arange(4 * BATCH * 18, dtype=np.uint8).reshape(4 * BATCH, 2, 3, 3)
    np.testing.assert_array_equal(in_batches(meet, images, BATCH).features, images.sum(axis=(1, 2)))


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((1, 2, 3, 3)),
        np.zeros((1, 2, 3, 1), np.uint8),
        np.zeros((2, 3, 3), np.uint8),
        np.zeros((1, 0, 3, 3), np.uint8),
    ],
)
def test_other_images_are_refused(images):
    with pytest.raises(ValueError, match=r"expected images \(n, H, W, 3\) of uint8"):
        in_batches(sums, images, BATCH)
