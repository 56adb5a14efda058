"""DINOv2 against the `Dinov2Model` of Hugging Face's transformers, on random and on formula
weights.

That model resamples its positions to a size; facebookresearch/dinov2, which FD-DINOv2 is measured
with, by a scale factor. For the latter the model gets the positions that the same call of PyTorch's
`F.interpolate` gives.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

from evaluation.extractors.dinov2 import load_dinov2, network
from evaluation.extractors.dinov2_weights import (
    DinoV2Config,
    convert,
    interpolate_positions,
    read_config,
    read_tensors,
)
from tests.evaluation.dinov2_weights import save, tiny_weights
from tests.evaluation.pictures import picture

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch", reason="parity with PyTorch needs torch")
transformers = pytest.importorskip(
    "transformers", reason="the reference is the Dinov2Model of transformers"
)

TINY = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}


def reference(**config: int) -> Any:
    """A model that leaves no parameter at a value that would hide a mistake."""
    torch.manual_seed(0)
    model = transformers.Dinov2Model(
        transformers.Dinov2Config(image_size=518, patch_size=14, **config)
    ).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lambda1" in name or ("norm" in name and name.endswith("weight")):
                parameter.uniform_(0.5, 1.5)
            elif name.endswith("bias"):
                parameter.uniform_(-0.3, 0.3)
            elif name.endswith(("token", "position_embeddings")):
                parameter.normal_()
            else:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
    return model


def use_positions_of_the_hub(model: Any, offset: float = 0.1) -> None:
    """Let it resample as facebookresearch/dinov2 does."""
    embeddings = model.embeddings
    grid = round((embeddings.position_embeddings.shape[1] - 1) ** 0.5)

    def positions(tokens: Any, height: int, width: int) -> Any:
        first, rest = embeddings.position_embeddings[:, :1], embeddings.position_embeddings[:, 1:]
        planes = rest.reshape(1, grid, grid, -1).permute(0, 3, 1, 2)
        factor = tuple((size // 14 + offset) / grid for size in (height, width))
        moved = torch.nn.functional.interpolate(planes, scale_factor=factor, mode="bicubic")
        return torch.cat([first, moved.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)

    embeddings.interpolate_pos_encoding = positions


def class_tokens(model: Any, images: np.ndarray) -> np.ndarray:
    """Of normalised images (n, 224, 224, 3)."""
    with torch.no_grad():
        found = model(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    return found.last_hidden_state[:, 0].numpy()


def relative_error(ours: Any, theirs: np.ndarray) -> float:
    """Largest difference, relative to the largest value."""
    return float(np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max())


def noise(count: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, 224, 224, 3), dtype=np.float32)


def ours(file: Path, images: np.ndarray, offset: float) -> np.ndarray:
    tensors = read_tensors(file)
    config = dataclasses.replace(read_config(tensors, file), offset=offset)
    apply: Callable[..., jax.Array] = jax.jit(network, static_argnums=0)
    return np.asarray(apply(config, convert(config, tensors), images))


@pytest.mark.parametrize(("side", "offset"), [(16, 0.1), (16, 0.0), (5, 0.1), (7, 0.0), (40, 0.1)])
def test_positions(side: int, offset: float) -> None:
    grid = np.random.default_rng(1).standard_normal((37, 37, 8))
    planes = torch.from_numpy(grid.transpose(2, 0, 1)[None].astype(np.float32))
    where = {"scale_factor": ((side + offset) / 37,) * 2} if offset else {"size": (side, side)}
    theirs = (
        torch.nn.functional.interpolate(planes, mode="bicubic", **where)[0].permute(1, 2, 0).numpy()
    )
    found = interpolate_positions(grid, side, offset)
    assert found.shape == theirs.shape == (side, side, 8)
    assert np.abs(found - theirs).max() < 3e-5  # theirs are computed at positions in float32


@pytest.mark.parametrize("offset", [0.0, 0.1])
def test_small_network(tmp_path: Path, offset: float) -> None:
    model = reference(**TINY)
    model.save_pretrained(tmp_path)
    if offset:
        use_positions_of_the_hub(model)
    assert (
        relative_error(
            ours(tmp_path / "model.safetensors", noise(2), offset), class_tokens(model, noise(2))
        )
        < 5e-6
    )


def test_positions_of_their_own_grid(tmp_path: Path) -> None:
    """A network of 224 pixels is used as it is, with any offset."""
    torch.manual_seed(2)
    model = transformers.Dinov2Model(
        transformers.Dinov2Config(image_size=224, patch_size=14, **TINY)
    ).eval()
    model.save_pretrained(tmp_path)
    assert (
        relative_error(
            ours(tmp_path / "model.safetensors", noise(1), 0.1), class_tokens(model, noise(1))
        )
        < 5e-6
    )


def test_vit_b14(tmp_path: Path) -> None:
    model = reference()
    model.save_pretrained(tmp_path)
    use_positions_of_the_hub(model)
    file = tmp_path / "model.safetensors"
    tensors = read_tensors(file)
    config = read_config(tensors, file)
    assert config == DinoV2Config(width=768, depth=12, hidden=3072, patch=14, grid=37, offset=0.1)
    assert (config.name, config.heads) == ("dinov2-vitb14", model.config.num_attention_heads)
    assert relative_error(ours(file, noise(2), 0.1), class_tokens(model, noise(2))) < 5e-6
    file.unlink()  # 350 MB


def test_extractor_from_pixels(tmp_path: Path) -> None:
    """dgm-eval's whole path: Pillow's resize, ImageNet's mean and deviation, the network of
    torch.hub.
    """
    save(tiny_weights(), tmp_path)
    config = transformers.Dinov2Config(image_size=518, patch_size=14, **TINY)
    config.save_pretrained(tmp_path)
    model = transformers.Dinov2Model.from_pretrained(tmp_path).eval()
    use_positions_of_the_hub(model)
    images = np.stack([picture(256, 200, number) for number in range(3)])
    resized = [
        Image.fromarray(image).resize((224, 224), Image.Resampling.BICUBIC) for image in images
    ]
    pixels = np.stack([np.asarray(image) for image in resized]).astype(np.float32) / 255
    mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    theirs = class_tokens(model, ((pixels - mean) / deviation).astype(np.float32))
    features = load_dinov2(tmp_path)(images).features
    assert relative_error(features, theirs) < 5e-6
