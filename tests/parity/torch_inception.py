"""The FID Inception network of torch-fidelity and pytorch-fid, with random weights in the layout of
the public file.
"""

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import scipy.sparse.linalg

from benchmarks.gpu_parts.features import inception_tensors


def import_peer(name: str) -> Any:
    """A module of pytorch-fid, torch-fidelity or clean-fid, or a skip where it or torch is
    missing.
    """
    pytest.importorskip("torch", reason="parity with PyTorch needs torch")
    from tests.parity.torchvision_blocks import torchvision_stand_in

    with torchvision_stand_in():
        return pytest.importorskip(name, reason=f"parity with {name} needs it")


def random_weights(path: Path, seed: int = 0) -> Path:
    """Write a .pth of all 566 tensors in which no parameter could stand in for another unnoticed.

    He-scaled kernels and positive variances: with others the activations die or grow, and every
    network agrees.
    """
    torch = importlib.import_module("torch")
    state: dict[str, Any] = {}
    for name, values in inception_tensors(seed).items():
        state[name] = torch.from_numpy(values)
        if name.endswith("running_var"):
            state[name.replace("running_var", "num_batches_tracked")] = torch.tensor(0)
    torch.save(state, path)
    return path


def images(count: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """(count, height, width, 3) uint8: coarse blocks with fine noise on them, different from image
    to image.
    """
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(0, 255, (count, 5, 5, 3))
    rows, columns = (np.arange(size) * 5 // size for size in (height, width))
    noise = rng.normal(0, rng.uniform(2, 40, (count, 1, 1, 1)), (count, height, width, 3))
    return (coarse[:, rows][:, :, columns] + noise).clip(0, 255).astype(np.uint8)


def low_rank_sqrtm(product: np.ndarray, disp: bool, rank: int = 8) -> tuple[np.ndarray, float]:
    """SciPy's square root of a matrix, taken within the range of a singular one.

    In place of the call that pytorch-fid makes on all 2048 dimensions: that takes a minute, warns
    that covariances of so few images are singular, and loses its `disp` in SciPy 1.18.
    """
    basis, singular, _ = scipy.sparse.linalg.svds(product, k=rank, v0=np.ones(len(product)))
    assert basis is not None
    assert singular is not None
    basis = basis[:, singular > 1e-9 * singular.max()]
    return basis @ scipy.linalg.sqrtm(basis.T @ product @ basis) @ basis.T, 0.0
