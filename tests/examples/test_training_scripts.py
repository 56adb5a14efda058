"""Both training scripts, a few steps long, on digits and a folder of random images."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evaluation.extractors.embedded import load_embedded
from pipelines.encoders.kl_config import VaeConfig
from pipelines.encoders.weights import load_vae

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of twelve images of two sizes, one file that is no image."""
    root, random = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for name in ("left", "right"):
        (root / name).mkdir()
        for index in range(12):
            pixels = random.integers(0, 256, (40 if index % 2 else 32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{index:02}.png")
    (root / "left" / "broken.png").write_bytes(b"no image")
    return root


def run(script: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, EXAMPLES / script, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_vae(folder: Path, tmp_path: Path) -> None:
    options = ["--title", "noise", "--channels", "8,8,8", "--steps", "2"]
    done = run("train_embedded_vae.py", tmp_path / "vae", "--images", folder, *options)
    assert done.returncode == 0, done.stderr
    vae = load_vae(str(tmp_path / "vae"))
    assert isinstance(vae.config, VaeConfig)
    assert (vae.config.factor, vae.config.block_out_channels) == (4, (8, 8, 8))
    card = (tmp_path / "vae" / "README.md").read_text()
    assert "| noise, held out | 2 |" in card
    assert "| noise, trained on | 22 |" in card
    assert str(folder) not in card
    assert done.stdout.splitlines()[-1] in card


def test_features(folder: Path, tmp_path: Path) -> None:
    done = run(
        "train_embedded_features.py",
        tmp_path / "net",
        "--images",
        folder,
        "--title",
        "noise",
        "--steps",
        "2",
    )
    assert done.returncode == 0, done.stderr
    extractor = load_embedded(tmp_path / "net")
    assert extractor.class_names == (*"0123456789", "left", "right")
    assert "| digits, held out | 1000 |" in (tmp_path / "net" / "README.md").read_text()


def test_a_folder_without_images_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = run("train_embedded_features.py", tmp_path / "net", "--images", tmp_path / "empty")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("Error: no readable image")
    assert not (tmp_path / "net").exists()
