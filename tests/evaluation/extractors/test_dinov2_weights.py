"""DINOv2's files: what is found, what is refused, and where the positions are read."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from evaluation.extractors.dinov2 import load_dinov2
from evaluation.extractors.dinov2_weights import (
    LARGE,
    DinoV2Config,
    find_weights,
    interpolate_positions,
)
from schemas.errors import UserError
from tests.evaluation.dinov2_weights import WIDTH, save, tiny_weights

GOLDEN = {0.1: [0.1943263, 6.0358043], 0.0: [0.21875, 6.78125]}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tiny_weights(), tmp_path_factory.mktemp("dinov2"))


def test_published_sizes_have_their_names():
    large = DinoV2Config(width=1024, depth=24, hidden=4096, patch=14, grid=37)
    assert (large.name, large.heads) == ("dinov2-vitl14", 16)
    base = dataclasses.replace(large, width=768, depth=12)
    assert (base.name, base.heads) == ("dinov2-vitb14", 12)


@pytest.mark.parametrize("offset", [0.0, 0.1])
def test_positions_read_the_old_grid_at_even_steps(offset):
    """A grid that holds its own coordinates tells where it was read, away from the border, where it
    is repeated.
    """
    rows, columns = np.meshgrid(np.arange(37.0), np.arange(37.0), indexing="ij")
    found = interpolate_positions(np.stack([rows, columns, np.ones((37, 37))], axis=-1), 16, offset)
    expected = (np.arange(16) + 0.5) * 37 / (16 + offset) - 0.5
    inside = slice(1, 15)
    # a = -0.75 bends straight lines
    np.testing.assert_allclose(found[inside, 3, 0], expected[inside], atol=0.1)
    np.testing.assert_allclose(found[..., 1], found[..., 0].T, atol=1e-12)
    np.testing.assert_allclose(found[..., 2], 1, atol=1e-12)


def test_positions_with_golden_numbers():
    """From torch 2.13: F.interpolate of [0, 1, 4, 9] along the rows, scale_factor 2.1/4 or size 2,
    bicubic.
    """
    grid = np.broadcast_to(np.array([0.0, 1, 4, 9])[:, None, None], (4, 4, 1))
    np.testing.assert_allclose(interpolate_positions(grid, 2, 0.1)[:, 0, 0], GOLDEN[0.1], atol=1e-5)
    np.testing.assert_allclose(interpolate_positions(grid, 2, 0.0)[:, 0, 0], GOLDEN[0.0], atol=1e-5)
    np.testing.assert_array_equal(interpolate_positions(grid, 4, 0.1), grid)


def test_a_directory_a_file_and_nothing(file, tmp_path):
    assert find_weights(file.parent) == find_weights(str(file)) == file
    assert load_dinov2(file.parent) is load_dinov2(file)
    with pytest.raises(
        UserError,
        match=f"no such file; give DINOv2 weights as safetensors, or a hub id such as {LARGE}",
    ):
        find_weights(tmp_path / "facebook/dinov2-large")
    with pytest.raises(UserError, match=r"model\.safetensors: no such file"):
        find_weights(tmp_path)
    with pytest.raises(UserError, match="has no revision 'main'"):
        find_weights(file, revision="main")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 a pickle", b'\x08\0\0\0\0\0\0\0{"a": 1}'])
def test_other_files_are_refused(tmp_path, content):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(UserError, match="not safetensors with float32") as told:
        load_dinov2(tmp_path)
    assert "\n" not in str(told.value)


def zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


POSITIONS = "embeddings.position_embeddings"
PROJECTION = "embeddings.patch_embeddings.projection.weight"
MISTAKES = {
    "missing": ("layernorm.weight", None, "no tensor 'layernorm.weight'"),
    "missing_layer": (
        "encoder.layer.1.mlp.fc2.bias",
        None,
        "no tensor 'encoder.layer.1.mlp.fc2.bias'",
    ),
    "no_positions": (POSITIONS, None, f"no tensor '{POSITIONS}'"),
    "gap": ("encoder.layer.1000000000.norm1.bias", zeros(WIDTH), "no tensor 'encoder.layer.2"),
    "unknown": ("classifier.weight", zeros(1000, 256), "unknown tensor 'classifier.weight'"),
    "shape": (
        "encoder.layer.0.mlp.fc2.weight",
        zeros(512, 128),
        r"of shape \(512, 128\) instead of \(128, 512\)",
    ),
    "registers": ("embeddings.register_tokens", zeros(1, 4, 128), "with registers"),
    "swiglu": ("encoder.layer.0.mlp.weights_in.weight", zeros(8, 128), "with SwiGLU"),
    "not_square": (POSITIONS, zeros(1, 1371, 128), "1371 positions"),
    "no_grid": (POSITIONS, zeros(1, 1, 128), "1 positions"),
    "flat": (POSITIONS, zeros(1370, 128), "other dimensions"),
    "heads": (PROJECTION, zeros(100, 3, 14, 14), "width 100"),
    "patch": (PROJECTION, zeros(128, 3, 15, 15), "patch 15"),
    "integers": ("layernorm.weight", np.zeros(WIDTH, np.int32), "of type int32"),
}


@pytest.mark.parametrize(("name", "value", "told"), MISTAKES.values(), ids=MISTAKES.keys())
def test_other_networks_are_refused(tmp_path, name, value, told):
    tensors = tiny_weights()
    if value is None:
        del tensors[name]
    else:
        tensors[name] = value
    file = save(tensors, tmp_path)
    with pytest.raises(UserError, match=told) as error:
        load_dinov2(tmp_path)
    assert str(error.value).startswith(f"{file}: ")
    assert "facebook/dinov2-large" in str(error.value)
    assert "\n" not in str(error.value)
