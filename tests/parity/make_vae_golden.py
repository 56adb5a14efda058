"""Writes the golden file of `tests/pipelines/encoders/test_kl.py`, from diffusers' PyTorch class
computed in float64.

    python -m tests.parity.make_vae_golden

`inputs`; `weights/NAME` under diffusers' names; `plain/mean`, `plain/logvar`, `plain/decoded`; and
the same under `large/` for the same weights with `LARGE_MEAN` added to the biases of all
convolutions that feed a norm.
"""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from tests.parity.torch_vae import import_diffusers, moments_and_image, random_vae

GOLDEN = Path(__file__).parent.parent / "pipelines" / "encoders" / "golden" / "vae.safetensors"
CONFIG = {
    "block_out_channels": [8, 16, 16],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "latent_channels": 4,
    "scaling_factor": 0.5,
}


def main() -> None:
    """Compute both cases and write them."""
    diffusers = import_diffusers()
    images = np.random.default_rng(0).uniform(-1, 1, (2, 16, 24, 3)).astype(np.float32)
    tensors = {"inputs": images}
    for case, large_means in (("plain", False), ("large", True)):
        model = random_vae(CONFIG, seed=1, large_means=large_means)
        if not large_means:
            tensors |= {
                f"weights/{name}": value.numpy().copy()
                for name, value in model.state_dict().items()
            }
        tensors |= {
            f"{case}/{name}": value
            for name, value in moments_and_image(model.double(), images).items()
        }
    GOLDEN.parent.mkdir(exist_ok=True)
    config = {"_class_name": "AutoencoderKL", **CONFIG}
    save_file(
        tensors, GOLDEN, metadata={"config": json.dumps(config), "diffusers": diffusers.__version__}
    )


if __name__ == "__main__":
    main()
