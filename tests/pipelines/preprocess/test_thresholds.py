"""The thresholds: a broken VAE lies below them, a good one above, and the command has them."""

import re
from pathlib import Path

import numpy as np
import pytest

from pipelines.cli import preprocess
from pipelines.images import adm_crop, decode_image
from pipelines.preprocess.thresholds import MAX_BAD_FRACTION, MIN_PSNR

ROOT = Path(__file__).resolve().parents[3]
DRAWN = 32  # records are decoded again
SIDE = 256


def test_the_command_and_its_page_say_the_same() -> None:
    defaults = {param.name: param.default for param in preprocess.params}
    assert (defaults["min_psnr"], defaults["max_bad_fraction"]) == (MIN_PSNR, MAX_BAD_FRACTION)
    page = (ROOT / "docs" / "dataset.md").read_text()
    table = dict(re.findall(r"^\| `(--[\w-]+)` \| ([\d.]+)", page, flags=re.MULTILINE))
    assert float(table["--min-psnr"]) == MIN_PSNR
    assert float(table["--max-bad-fraction"]) == MAX_BAD_FRACTION


@pytest.fixture(scope="module")
def photographs(shared_data: Path) -> np.ndarray:
    """(32, 256, 256, 3) of ImageNet, as they are encoded."""
    files = sorted(shared_data.glob("imagenet_sample/*/*"))
    if len(files) < DRAWN:
        pytest.skip("no photographs of ImageNet among the sample images")
    chosen = files[:: len(files) // DRAWN][:DRAWN]
    return np.stack([adm_crop(decode_image(f.read_bytes()), SIDE) for f in chosen])


def psnr(images: np.ndarray, others: np.ndarray) -> float:
    """Of all images together, in dB."""
    error = np.square(images.astype(np.float64) - others).mean()
    return float(10 * np.log10(255**2 / error))


def test_what_a_broken_vae_gives_is_refused(photographs: np.ndarray) -> None:
    mean = photographs.mean(axis=(1, 2), keepdims=True)
    assert psnr(photographs, np.broadcast_to(mean, photographs.shape)) < MIN_PSNR
    assert psnr(photographs, photographs[..., ::-1]) < MIN_PSNR, "red and blue exchanged"


def test_the_threshold_lies_where_half_the_contrast_is_lost(photographs: np.ndarray) -> None:
    grey = 127.5  # 0 of [-1, 1]
    half = psnr(photographs, grey + (photographs - grey) / 2)
    assert 16.3 < half < 18.4, "998 of 1000 draws, says docs/dataset.md"
    assert MIN_PSNR - 2 < half < MIN_PSNR + 0.5


def test_a_distortion_like_that_of_a_good_vae_passes(photographs: np.ndarray) -> None:
    moved = np.concatenate([photographs[:, :, :1], photographs[:, :, :-1]], axis=2)
    assert psnr(photographs, moved) > MIN_PSNR, "a shift by one pixel"
