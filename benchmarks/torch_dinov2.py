"""DINOv2's vision transformer in PyTorch with the tensors of ours, for `benchmarks/gpu.py`.

Positions come from `evaluation.extractors.dinov2_weights.interpolate_positions`, which
`tests/parity/test_dinov2.py` compares with PyTorch's; images have the network's size, so nothing is
resized.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.extractors.dinov2 import DEVIATION, EPSILON, MEAN
from evaluation.extractors.dinov2_weights import DinoV2Config, convert


def dinov2(
    config: DinoV2Config, tensors: Mapping[str, NDArray[np.float32]], device: Any
) -> Callable[[Any], Any]:
    """uint8 images (n, 224, 224, 3) on `device` -> class tokens (n, width)."""
    import torch
    import torch.nn.functional as F

    def moved(tree: Any) -> Any:
        if isinstance(tree, dict):
            return {name: moved(value) for name, value in tree.items()}
        if isinstance(tree, list):
            return [moved(value) for value in tree]
        return torch.from_numpy(np.ascontiguousarray(tree)).to(device)

    params = moved(convert(config, tensors))
    mean, deviation = (torch.tensor(values, device=device) for values in (MEAN, DEVIATION))

    def linear(x: Any, layer: dict[str, Any]) -> Any:
        return F.linear(x, layer["kernel"].T, layer["bias"].flatten())

    def norm(x: Any, layer: dict[str, Any]) -> Any:
        return F.layer_norm(
            x, (config.width,), layer["weight"].flatten(), layer["bias"].flatten(), EPSILON
        )

    def attention(x: Any, layer: dict[str, Any]) -> Any:
        n, tokens, width = x.shape
        shape = (n, tokens, config.heads, width // config.heads)
        q, k, v = (
            linear(x, layer[name]).reshape(shape).transpose(1, 2)
            for name in ("query", "key", "value")
        )
        mixed = F.scaled_dot_product_attention(q, k, v)
        return linear(mixed.transpose(1, 2).reshape(n, tokens, width), layer["out"])

    def features(images: Any) -> Any:
        n, side = len(images), images.shape[1] // config.patch
        x = (images.float() / 255 - mean) / deviation
        x = x.reshape(n, side, config.patch, side, config.patch, 3).permute(0, 1, 3, 2, 4, 5)
        x = linear(x.reshape(n, side * side, -1), params["patches"])
        x = torch.cat([params["class_token"].expand(n, 1, -1), x], 1) + params["positions"]
        for layer in params["layers"]:
            x = x + layer["scale1"] * attention(norm(x, layer["norm1"]), layer)
            x = x + layer["scale2"] * linear(
                F.gelu(linear(norm(x, layer["norm2"]), layer["fc1"])), layer["fc2"]
            )
        return norm(x[:, 0], params["norm"])

    return features
