"""TAEF2 in PyTorch, written down from the description of its tensors: the twin that diffusers does
not have.

Layers are numbered as in the files, so that a state dict loads as it is.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

WIDTH = 64


def make_halves(latent_channels: int, pool: bool) -> tuple[Any, Any]:
    """Encoder (images in [0, 1] to latents) and decoder of the author's layout, with PyTorch's
    initial weights.
    """
    torch = pytest.importorskip("torch", reason="parity with PyTorch needs torch")
    nn = torch.nn

    class Clamp(nn.Module):
        def forward(self, x: Any) -> Any:
            return torch.tanh(x / 3) * 3

    class Block(nn.Module):
        def __init__(self, pooled: bool) -> None:
            super().__init__()
            self.conv = nn.Sequential(
                convolution(),
                nn.ReLU(),
                convolution(),
                nn.ReLU(),
                nn.Conv2d(WIDTH, WIDTH, 3, padding=1),
            )
            self.pool = None
            if pooled:
                self.pool = nn.Sequential(
                    nn.Conv2d(WIDTH, 4 * WIDTH, 1, bias=False),
                    nn.GroupNorm(4, 4 * WIDTH),
                    nn.ReLU(),
                    nn.Conv2d(4 * WIDTH, WIDTH, 1, bias=False),
                )

        def forward(self, x: Any) -> Any:
            if self.pool is not None:
                x = x + self.pool(x)
            return torch.relu(self.conv(x) + x)

    def convolution(inputs: int = WIDTH, outputs: int = WIDTH, **options: Any) -> Any:
        return nn.Conv2d(inputs, outputs, 3, padding=1, **options)

    def blocks(count: int, pooled: bool = False) -> list[Any]:
        return [Block(pooled) for _ in range(count)]

    down = [convolution(3, WIDTH), *blocks(1)]
    for stage in range(3):
        down += [convolution(stride=2, bias=False), *blocks(3, pool and stage == 2)]
    up = [Clamp(), convolution(latent_channels, WIDTH), nn.ReLU()]
    for stage in range(3):
        up += [
            *blocks(3, pool and stage == 0),
            nn.Upsample(scale_factor=2),
            convolution(bias=False),
        ]
    encoder = nn.Sequential(*down, convolution(WIDTH, latent_channels))
    decoder = nn.Sequential(*up, *blocks(1), convolution(WIDTH, 3))
    return encoder.eval(), decoder.eval()


def load_taef2(directory: Path) -> tuple[Any, Any]:
    """The twin with the real weights, in float32."""
    encoder, decoder = make_halves(32, pool=True)
    from safetensors.torch import load_file

    for half, network in (("encoder", encoder), ("decoder", decoder)):
        tensors = load_file(directory / f"taef2_{half}.safetensors")
        network.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    return encoder, decoder


def encode(encoder: Any, pixels: np.ndarray) -> np.ndarray:
    """Latents (n, h, w, c) of uint8 images (n, H, W, 3)."""
    import torch

    with torch.no_grad():
        images = torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()).float() / 255
        return encoder(images).numpy().transpose(0, 2, 3, 1).copy()


def decode(decoder: Any, latents: np.ndarray) -> np.ndarray:
    """uint8 images (n, H, W, 3) of latents (n, h, w, c)."""
    import torch

    with torch.no_grad():
        images = decoder(torch.from_numpy(latents.transpose(0, 3, 1, 2).copy())).clamp(0, 1)
    return (images * 255).round().to(torch.uint8).numpy().transpose(0, 2, 3, 1).copy()
