"""Preparations of images; tests/parity compares them with the evaluators they are named after."""

import jax.numpy as jnp
import numpy as np
import pytest

from evaluation.extractors.resize import (
    PREPARATIONS,
    by_128,
    by_255,
    pil_bicubic,
    tf1_bilinear,
    torch_bilinear,
)


def row(*values: int) -> np.ndarray:
    """(1, 1, n, 3) uint8, one row of grey pixels."""
    return np.repeat(np.array(values, np.uint8)[None, None, :, None], 3, axis=3)


def board(size: int) -> np.ndarray:
    """(1, size, size, 3) uint8, a checkerboard of single pixels."""
    return np.repeat(
        (np.indices((size, size)).sum(axis=0) % 2 * 255).astype(np.uint8)[None, ..., None],
        3,
        axis=3,
    )


def test_where_samples_lie() -> None:
    x = jnp.asarray(row(0, 100))
    np.testing.assert_array_equal(tf1_bilinear(x, 4)[0, 0, :, 0], [0, 50, 100, 100])
    np.testing.assert_array_equal(torch_bilinear(x, 4)[0, 0, :, 0], [0, 25, 75, 100])
    tall = jnp.swapaxes(x, 1, 2)
    np.testing.assert_array_equal(tf1_bilinear(tall, 4)[0, :, 0, 1], [0, 50, 100, 100])
    np.testing.assert_array_equal(torch_bilinear(tall, 4)[0, :, 0, 1], [0, 25, 75, 100])


def test_only_pillow_antialiases() -> None:
    x = board(64)
    grey = pil_bicubic(x, 32)[:, 4:-4, 4:-4]
    assert np.abs(grey - 127.5).max() < 1
    assert set(np.unique(tf1_bilinear(jnp.asarray(x), 32))) == {0}
    # the middle of every third pixel
    narrow = np.asarray(torch_bilinear(jnp.asarray(board(63)), 21))
    assert set(np.unique(narrow)) == {0, 255}


def test_overshoot_is_clipped() -> None:
    """A cubic kernel swings beyond a step; clean-fid clips that."""
    resized = pil_bicubic(row(0, 0, 255, 255), 16)
    assert (resized.min(), resized.max()) == (0, 255)
    assert (np.diff(resized[0, 0, :, 0]) >= 0).all()


@pytest.mark.parametrize(
    ("name", "white"),
    [("tf1-bilinear", 127 / 128), ("torch-bilinear", 1), ("pil-bicubic", 127 / 128)],
)
def test_ranges_types_and_sizes(name: str, white: float) -> None:
    x = np.stack([np.zeros((5, 9, 3), np.uint8), np.full((5, 9, 3), 255, np.uint8)])
    prepared = np.asarray(PREPARATIONS[name](x, 7))
    assert (prepared.shape, prepared.dtype) == ((2, 7, 7, 3), np.float32)
    np.testing.assert_allclose(prepared[0], -1, atol=1e-6)
    np.testing.assert_allclose(prepared[1], white, atol=1e-6)


@pytest.mark.parametrize("name", PREPARATIONS)
def test_the_right_size_passes_untouched(name: str) -> None:
    x = np.random.default_rng(0).integers(0, 256, (2, 6, 6, 3), np.uint8)
    rule = by_255 if name == "torch-bilinear" else by_128
    expected = np.asarray(rule(jnp.asarray(x, jnp.float32)))
    np.testing.assert_array_equal(np.asarray(PREPARATIONS[name](x, 6)), expected)
