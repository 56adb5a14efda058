"""The FID Inception network in PyTorch, from the same table of layers as ours, for
`benchmarks/gpu.py`.

That table is checked against torch-fidelity's and pytorch-fid's own classes by
`tests/parity/test_inception.py`.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.extractors.inception import (
    _TO_POOL,
    _TO_SPATIAL,
    EPSILON,
    INPUT_SIZE,
    _Block,
    _Conv,
    _Pool,
    _Steps,
)


def inception(tensors: Mapping[str, NDArray[np.float32]], device: Any) -> Callable[[Any], Any]:
    """uint8 images (n, H, W, 3) on `device` -> features (n, 2048), resized as TensorFlow 1 does."""
    import torch

    def tensor(name: str) -> Any:
        return torch.from_numpy(tensors[name]).to(device)

    weights: dict[str, tuple[Any, Any]] = {}
    for name in (
        key.removesuffix(".conv.weight") for key in tensors if key.endswith(".conv.weight")
    ):
        mean, variance = tensor(f"{name}.bn.running_mean"), tensor(f"{name}.bn.running_var")
        scale = tensor(f"{name}.bn.weight") / torch.sqrt(variance + EPSILON)
        kernel = tensor(f"{name}.conv.weight") * scale[:, None, None, None]
        weights[name] = (
            kernel.contiguous(memory_format=torch.channels_last),
            tensor(f"{name}.bn.bias") - mean * scale,
        )

    def features(images: Any) -> Any:
        x = _resized(images.permute(0, 3, 1, 2).float())
        x = ((x - 128) / 128).contiguous(memory_format=torch.channels_last)
        return _run((*_TO_SPATIAL, *_TO_POOL), weights, x).mean((2, 3))

    return features


def _resized(x: Any) -> Any:
    """Bilinear, output pixel i read at i * size / 299, the edge repeated: no option of PyTorch's
    `interpolate`.
    """
    import torch

    for axis in (3, 2):
        size = x.shape[axis]
        position = torch.arange(INPUT_SIZE, device=x.device, dtype=torch.float32) * (
            size / INPUT_SIZE
        )
        low = position.long()
        high = (low + 1).clamp_max(size - 1)
        weight = (position - low).reshape([-1 if axis == number else 1 for number in range(4)])
        first = x.index_select(axis, low)
        x = first + (x.index_select(axis, high) - first) * weight
    return x


def _run(steps: _Steps, weights: Mapping[str, tuple[Any, Any]], x: Any, prefix: str = "") -> Any:
    import torch

    for step in steps:
        if isinstance(step, _Conv):
            x = _convolve(step, *weights[prefix + step.name], x)
        elif isinstance(step, _Pool):
            x = _pool(step, x)
        elif isinstance(step, _Block):
            inner = f"{prefix}{step.name}." if step.name else prefix
            x = torch.cat([_run(branch, weights, x, inner) for branch in step.branches], 1)
    return x


def _convolve(step: _Conv, kernel: Any, bias: Any, x: Any) -> Any:
    import torch.nn.functional as F

    padding = tuple(size // 2 for size in step.kernel) if step.padding == "SAME" else (0, 0)
    return F.relu(F.conv2d(x, kernel, bias, step.stride, padding))


def _pool(step: _Pool, x: Any) -> Any:
    import torch.nn.functional as F

    padding = 1 if step.padding == "SAME" else 0
    if step.kind == "max":
        return F.max_pool2d(x, 3, step.stride, padding)
    return F.avg_pool2d(x, 3, step.stride, padding, count_include_pad=False)
