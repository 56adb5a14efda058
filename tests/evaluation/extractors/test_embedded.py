"""The feature network that the package ships."""

import hashlib

import jax.numpy as jnp
import numpy as np
import pytest

from evaluation.extractors.embedded import (
    ASSET_DIRECTORY,
    WEIGHTS_FILE,
    EmbeddedExtractor,
    load_embedded,
    prepare,
)
from pipelines.sources.embedded import DIGIT_NAMES, load_digits


@pytest.fixture(scope="module")
def extractor() -> EmbeddedExtractor:
    return load_embedded()


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    return load_digits("test")


def test_names_size_and_digest(extractor: EmbeddedExtractor) -> None:
    weights = (ASSET_DIRECTORY / WEIGHTS_FILE).read_bytes()
    assert extractor.name == "embedded"
    assert extractor.digest == hashlib.sha256(weights).hexdigest()
    assert extractor.class_names[:10] == DIGIT_NAMES
    assert extractor.num_classes == len(set(extractor.class_names)) == 20
    assert len(weights) <= 2_000_000
    assert "accuracy" in (ASSET_DIRECTORY / "README.md").read_text()


def test_held_out_digits_are_recognised(
    extractor: EmbeddedExtractor, digits: tuple[np.ndarray, np.ndarray]
) -> None:
    images, labels = digits
    features, logits, _ = extractor(images)
    assert (features.shape, features.dtype) == ((1000, extractor.dim), np.float32)
    assert (logits.shape, logits.dtype) == ((1000, 20), np.float32)
    assert (logits.argmax(axis=1) == labels).mean() >= 0.98
    assert np.linalg.matrix_rank(np.cov(features.T)) > extractor.dim // 2


def test_results_do_not_depend_on_how_images_are_cut(
    extractor: EmbeddedExtractor, digits: tuple[np.ndarray, np.ndarray]
) -> None:
    images = digits[0][:300]
    whole = extractor(images).features
    pieces = np.concatenate([extractor(part)[0] for part in np.split(images, [1, 7, 290])])
    np.testing.assert_allclose(pieces, whole, rtol=1e-5, atol=1e-6)
    assert extractor(images[:0])[0].shape == (0, extractor.dim)


def test_other_sizes_are_resized(
    extractor: EmbeddedExtractor, digits: tuple[np.ndarray, np.ndarray]
) -> None:
    images, labels = digits[0][:200], digits[1][:200]
    doubled = images.repeat(2, axis=1).repeat(2, axis=2)
    logits = extractor(doubled).logits
    assert (logits.argmax(axis=1) == labels).mean() >= 0.95


def test_resizing_is_antialiased() -> None:
    """A checkerboard of single pixels has no place on half the grid: it becomes grey."""
    board = np.indices((64, 64)).sum(axis=0) % 2 * 255
    colour = np.repeat(board[None, ..., None], 3, axis=-1)
    prepared = np.asarray(prepare(jnp.asarray(colour, jnp.uint8)))
    assert prepared.shape == (1, 32, 32, 3)
    assert np.abs(prepared[:, 2:-2, 2:-2]).max() < 0.05


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((2, 32, 32, 3), np.float32),
        np.zeros((32, 32, 3), np.uint8),
        np.zeros((2, 32, 32, 1), np.uint8),
    ],
)
def test_other_types_and_shapes_are_refused(
    extractor: EmbeddedExtractor, images: np.ndarray
) -> None:
    with pytest.raises(ValueError, match="uint8"):
        extractor(images)
