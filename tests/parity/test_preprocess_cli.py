"""What `flowtrain preprocess` stores, beside diffusers' AutoencoderKL in PyTorch on the same image
files.

A stored value has to be the float16 rounding of a number within `NOISE` times the largest value of
PyTorch's float32 result. That is the whole allowance: rounding is monotone, so the stored value
must lie between the roundings of the two ends of that interval. `NOISE` is what float32 leaves
open: PyTorch's own results are off from its float64 results by up to a quarter of it (checked
below), ours as well, and other machines add up in other orders.
"""

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from pipelines.encoders.weight_files import WEIGHTS_FILE
from schemas.manifest import read_manifest
from tests.parity.torch_vae import (
    SIXTEEN_CHANNELS,
    STABLE_DIFFUSION,
    import_diffusers,
    moments_and_image,
    random_vae,
    save,
    with_old_names,
)

import_diffusers()
pytestmark = pytest.mark.parity

NOISE = 2e-5
SMALL = {
    "block_out_channels": [32, 64, 64],
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 8,
}
SIDE = 64
MODELS = {
    "small": (SMALL, None),
    "sixteen_channels_no_quant_shift": (SIXTEEN_CHANNELS, None),
    "old_names": (SMALL, False),
    "old_names_as_convolutions": (SMALL, True),
}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For a bare clone: colour and grey, wide and tall, larger and smaller than they are stored,
    PNG and JPEG.
    """
    folder = tmp_path_factory.mktemp("drawn")
    rng = np.random.default_rng(0)
    for number, (width, height) in enumerate(
        [(64, 64), (200, 90), (70, 150), (40, 50), (300, 131)]
    ):
        coarse = Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8))
        picture = coarse.resize((width, height), Image.Resampling.BICUBIC)
        suffix = "jpg" if number % 2 else "png"
        (picture.convert("L") if number == 2 else picture).save(folder / f"{number}.{suffix}")
    return folder


def cropped(file: Path, side: int) -> np.ndarray:
    """ADM's centre crop, as float in [-1, 1]: written from its description, for comparison."""
    with Image.open(file) as opened:
        image = opened.convert("RGB")
    while min(image.size) // 2 >= side:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    ratio = side / min(image.size)
    image = image.resize(
        (round(image.width * ratio), round(image.height * ratio)), Image.Resampling.BICUBIC
    )
    left, top = (image.width - side) // 2, (image.height - side) // 2
    pixels = np.asarray(image.crop((left, top, left + side, top + side)), np.float64)
    return (pixels * 2 / 255 - 1).astype(np.float32)


def preprocess(
    folder: Path, vae: Path, out: Path, side: int, batch: int
) -> dict[str, dict[str, Any]]:
    """Run the command and read the records by their keys as any user of TensorFlow Datasets
    would.
    """
    command = [
        sys.executable,
        "-m",
        "flowtrain.cli",
        "preprocess",
        folder,
        out,
        "--vae",
        vae,
        "--min-psnr",
        "0",
    ]
    command += [
        "--resolution",
        side,
        "--batch-size",
        batch,
        "--vae-dtype",
        "float32",
        "--max-bad-fraction",
        "0",
    ]
    subprocess.run(list(map(str, command)), check=True, timeout=1800)
    builder: Any = tfds.builder_from_directory(str(out))
    source = builder.as_data_source("train")
    return {
        _text(record["key"]): record for record in (source[index] for index in range(len(source)))
    }


def _text(key: Any) -> str:
    return key.decode() if isinstance(key, bytes) else str(key)


def assert_rounded(stored: np.ndarray, exact: np.ndarray, noise: float) -> float:
    """Each stored value is the float16 rounding of a number within `noise` of the exact one; the
    share that is its own.

    Below float16's normal range its steps are 6e-8, far below `noise`: nothing special happens
    there.
    """
    assert stored.dtype == np.float16
    low, high = (
        (exact.astype(np.float64) - noise).astype(np.float16),
        (exact.astype(np.float64) + noise).astype(np.float16),
    )
    outside = (stored < low) | (stored > high)
    assert not outside.any(), (
        f"{outside.mean():.2%} of the values are off, by up to {np.abs(stored - exact).max()}"
    )
    return float((stored == exact.astype(np.float16)).mean())


def compare(model: Any, vae: Path, folder: Path, out: Path, side: int, batch: int) -> None:
    records = preprocess(folder, vae, out, side, batch)
    files = sorted(folder.iterdir())
    assert sorted(records) == [file.name for file in files]
    for file in files:  # one by one: a mistake in batching would show
        expected = moments_and_image(model, cropped(file, side)[None], decode=False)
        for name in ("mean", "logvar"):
            exact = expected[name][0]
            own = assert_rounded(records[file.name][name], exact, NOISE * np.abs(exact).max())
            print(f"{file.name} {name}: {own:.2%} of the stored values are PyTorch's, rounded")  # noqa: T201
            assert own > 0.9
    info = read_manifest(out).vae
    assert info is not None
    assert info.sha256 == hashlib.sha256((vae / WEIGHTS_FILE).read_bytes()).hexdigest()
    assert info.scaling_factor == model.config.scaling_factor
    assert info.shift_factor == (model.config.shift_factor or 0)


@pytest.mark.parametrize("kind", MODELS)
def test_small_models_on_drawn_images(drawn: Path, tmp_path: Path, kind: str) -> None:
    config, as_convolution = MODELS[kind]
    model = random_vae(config, seed=5, large_means=False)
    vae = save(model, tmp_path / "vae")
    if as_convolution is not None:
        with_old_names(vae, as_convolution)
    compare(model, vae, drawn, tmp_path / "out", SIDE, batch=3)  # the last batch is padded


def test_stable_diffusion_on_photographs(shared_data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photographs"
    folder.mkdir()
    for file in sorted((shared_data / "imagenet_sample").glob("*/*.JPEG"))[::50][:4]:
        (folder / file.name).write_bytes(file.read_bytes())
    model = random_vae(STABLE_DIFFUSION, seed=0, large_means=False)
    compare(model, save(model, tmp_path / "vae"), folder, tmp_path / "out", 256, batch=2)


@pytest.mark.parametrize("config", [SMALL, SIXTEEN_CHANNELS], ids=["small", "sixteen_channels"])
def test_the_noise_allowed_for_is_that_of_float32(drawn: Path, config: dict[str, Any]) -> None:
    model = random_vae(config, seed=5, large_means=False)
    x = np.stack([cropped(file, SIDE) for file in sorted(drawn.iterdir())])
    single, double = (
        moments_and_image(model, x, decode=False),
        moments_and_image(model.double(), x, decode=False),
    )
    for name, exact in double.items():
        error = np.abs(single[name] - exact).max() / np.abs(exact).max()
        print(f"{name}: PyTorch's float32 is off by {error:.1e} of the largest value")  # noqa: T201
        assert error < NOISE / 4
