"""A tiny DINOv2 network whose weights are a formula, in the layout of the Hugging Face hub."""

from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

WIDTH, DEPTH, PATCH, GRID = 128, 2, 14, 37
LINEARS = {
    **{f"attention.attention.{part}": (WIDTH, WIDTH) for part in ("query", "key", "value")},
    "attention.output.dense": (WIDTH, WIDTH),
    "mlp.fc1": (4 * WIDTH, WIDTH),
    "mlp.fc2": (WIDTH, 4 * WIDTH),
}


def scattered(
    shape: tuple[int, ...], phase: float, center: float = 0.0, spread: float = 1.0
) -> np.ndarray:
    """Numbers in center ± spread without visible order, the same with every release of NumPy,
    float32.
    """
    values = np.sin(12.9898 * np.arange(1, np.prod(shape) + 1) + 78.233 * phase) * 43758.5453
    return (
        (center + spread * (2 * (values - np.floor(values)) - 1)).reshape(shape).astype(np.float32)
    )


def tiny_weights() -> dict[str, np.ndarray]:
    """Width 128 (two heads), two layers, patches of 14 pixels on a grid of 37x37; no parameter is
    at 0 or 1.
    """
    tensors = {
        "embeddings.cls_token": scattered((1, 1, WIDTH), 1),
        "embeddings.mask_token": scattered((1, WIDTH), 2),
        "embeddings.position_embeddings": scattered((1, GRID**2 + 1, WIDTH), 3),
        "embeddings.patch_embeddings.projection.weight": scattered(
            (WIDTH, 3, PATCH, PATCH), 4, spread=0.05
        ),
        "embeddings.patch_embeddings.projection.bias": scattered((WIDTH,), 5, spread=0.3),
        "layernorm.weight": scattered((WIDTH,), 6, center=1.0, spread=0.5),
        "layernorm.bias": scattered((WIDTH,), 7, spread=0.3),
    }
    for index in range(DEPTH):
        name = f"encoder.layer.{index}"
        for number, (linear, shape) in enumerate(LINEARS.items(), start=10 + 20 * index):
            tensors[f"{name}.{linear}.weight"] = scattered(
                shape, number, spread=1.7 * shape[1] ** -0.5
            )
            tensors[f"{name}.{linear}.bias"] = scattered(shape[:1], number + 6, spread=0.3)
        for part in (1, 2):
            tensors[f"{name}.norm{part}.weight"] = scattered(
                (WIDTH,), 100 + index + 2 * part, center=1.0, spread=0.5
            )
            tensors[f"{name}.norm{part}.bias"] = scattered(
                (WIDTH,), 110 + index + 2 * part, spread=0.3
            )
            tensors[f"{name}.layer_scale{part}.lambda1"] = scattered(
                (WIDTH,), 120 + index + 2 * part, 1.0, 0.5
            )
    return tensors


def save(tensors: dict[str, np.ndarray], directory: Path) -> Path:
    """Write `model.safetensors`, as the hub names it."""
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / "model.safetensors"
    save_file(tensors, file)
    return file
