"""A tiny autoencoder in its author's layout, with random weights: two numbered state dicts and no
config.
"""

from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

Tensors = dict[str, np.ndarray]
WIDTH = 64


def random_halves(channels: int = 32, pool: bool = True, seed: int = 0) -> dict[str, Tensors]:
    """Tensors of encoder and decoder by their numbers: 15 and 20 layers, of which blocks have three
    convolutions.
    """
    rng = np.random.default_rng(seed)

    def convolution(
        name: str, outputs: int, inputs: int, bias: bool = True, kernel: int = 3
    ) -> Tensors:
        scale = (inputs * kernel**2) ** -0.5
        weight = scale * rng.normal(size=(outputs, inputs, kernel, kernel))
        tensors = {f"{name}.weight": weight.astype(np.float16)}
        if bias:
            tensors[f"{name}.bias"] = rng.normal(scale=0.1, size=outputs).astype(np.float16)
        return tensors

    def block(number: int, pooled: bool) -> Tensors:
        tensors: Tensors = {}
        for part in (0, 2, 4):
            tensors |= convolution(f"{number}.conv.{part}", WIDTH, WIDTH)
        if pooled:
            tensors |= convolution(f"{number}.pool.0", 4 * WIDTH, WIDTH, bias=False, kernel=1)
            tensors[f"{number}.pool.1.weight"] = rng.uniform(0.5, 1.5, 4 * WIDTH).astype(np.float16)
            tensors[f"{number}.pool.1.bias"] = rng.normal(scale=0.1, size=4 * WIDTH).astype(
                np.float16
            )
            tensors |= convolution(f"{number}.pool.3", WIDTH, 4 * WIDTH, bias=False, kernel=1)
        return tensors

    encoder = convolution("0", WIDTH, 3) | block(1, False)
    for first in (2, 6, 10):
        encoder |= convolution(str(first), WIDTH, WIDTH, bias=False)
        for number in range(first + 1, first + 4):
            encoder |= block(number, pool and first == 10)
    encoder |= convolution("14", channels, WIDTH)
    decoder = convolution("1", WIDTH, channels)
    for first in (3, 8, 13):
        for number in range(first, first + 3):
            decoder |= block(number, pool and first == 3)
        decoder |= convolution(str(first + 4), WIDTH, WIDTH, bias=False)
    decoder |= block(18, False) | convolution("19", 3, WIDTH)
    return {"encoder": encoder, "decoder": decoder}


def write_halves(directory: Path, halves: dict[str, Tensors], name: str = "taef2") -> Path:
    """Save them as NAME_encoder.safetensors and NAME_decoder.safetensors."""
    directory.mkdir(parents=True, exist_ok=True)
    for half, tensors in halves.items():
        save_file(tensors, directory / f"{name}_{half}.safetensors")
    return directory
