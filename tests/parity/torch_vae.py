"""diffusers' AutoencoderKL with random weights that leave no parameter at a value that would hide a
mistake.
"""

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from pipelines.encoders.weight_files import WEIGHTS_FILE

LARGE_MEAN = 100.0

STABLE_DIFFUSION = {
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "latent_channels": 4,
}
SIXTEEN_CHANNELS = {
    "block_out_channels": [32, 64, 64],
    "layers_per_block": 2,
    "latent_channels": 16,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
    "scaling_factor": 1.5305,
    "shift_factor": 0.0609,
}
OLD_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def import_diffusers() -> Any:
    """diffusers, or a skip of the calling module where it or torch is missing.

    A torchvision built for another torch breaks diffusers' import although it is not needed here;
    it is then hidden.
    """
    pytest.importorskip("torch", reason="parity with PyTorch needs torch")
    pytest.importorskip("diffusers", reason="parity with PyTorch needs diffusers")
    try:
        importlib.import_module("torchvision")
    except Exception:  # missing, or its operators do not register
        vars(importlib.import_module("diffusers.utils.import_utils"))["_torchvision_available"] = (
            False
        )
    return importlib.import_module("diffusers")


def random_vae(config: dict[str, Any], seed: int, large_means: bool) -> Any:
    """A diffusers AutoencoderKL of that config, float32, in eval mode.

    Norm scales and all biases are random too: at their initial 1 and 0 two of them could be swapped
    unnoticed. With `large_means` the convolutions before norms get biases near 100, so that channel
    means dwarf the spread.
    """
    import torch

    diffusers = import_diffusers()
    torch.manual_seed(seed)
    blocks = len(config["block_out_channels"])
    model = diffusers.AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * blocks,
        up_block_types=["UpDecoderBlock2D"] * blocks,
        **config,
    ).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name and name.endswith("weight"):
                parameter.uniform_(0.5, 1.5)
            elif name.endswith("bias"):
                parameter.uniform_(-0.3, 0.3)
            if large_means and feeds_a_norm(name):
                parameter.add_(LARGE_MEAN)
    return model


def feeds_a_norm(name: str) -> bool:
    """Whether a parameter is the bias of a convolution whose output is normalised next or after a
    skip connection.
    """
    return name.endswith(("conv_in.bias", "conv1.bias", "conv2.bias", "0.conv.bias"))


def moments_and_image(model: Any, images: np.ndarray, decode: bool = True) -> dict[str, np.ndarray]:
    """mean, logvar and, if wanted, decode(mean) of NHWC images, in the model's type; back in NHWC
    and float32.
    """
    import torch

    dtype = next(model.parameters()).dtype
    with torch.no_grad():
        posterior = model.encode(
            torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).to(dtype)
        ).latent_dist
        found = {"mean": posterior.mean, "logvar": posterior.logvar}
        if decode:
            found["decoded"] = model.decode(posterior.mean).sample
    return {
        name: value.float().numpy().transpose(0, 2, 3, 1).copy() for name, value in found.items()
    }


def save(model: Any, directory: Path) -> Path:
    model.save_pretrained(directory)
    return directory


def relative_error(ours: Any, theirs: np.ndarray) -> float:
    """Largest difference, relative to the largest value."""
    return float(np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max())


def with_old_names(directory: Path, as_convolution: bool) -> None:
    """Rename the attention's tensors in a directory as they were before diffusers 0.15, in linear
    or 1x1 shape.
    """
    renamed = {}
    for name, value in load_file(directory / WEIGHTS_FILE).items():
        for new, old in OLD_NAMES.items():
            if f".attentions.0.{new}." in name:
                name = name.replace(f".{new}.", f".{old}.")
                if as_convolution and value.ndim == 2:
                    value = value[:, :, None, None]
        renamed[name] = value
    assert any(".query." in name for name in renamed)
    assert not any(".to_q." in name for name in renamed)
    save_file(renamed, directory / WEIGHTS_FILE, metadata={"format": "pt"})
