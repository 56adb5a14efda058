"""The parts of `benchmarks/gpu.py` that compare with PyTorch, at miniature size, and its
distances.
"""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.gpu_parts import inputs, results
from benchmarks.gpu_parts.cifar_data import encode
from benchmarks.gpu_parts.cifar_score import Scorer
from benchmarks.gpu_parts.part import Context
from benchmarks.gpu_parts.parts import PARTS
from evaluation.extractors.inception import load_inception
from evaluation.protocols import PROTOCOLS
from pipelines.encoders.weights import load_vae
from schemas.pixels import from_uint8, to_uint8
from tests.gpu_script import blocker, call
from tests.parity.torch_inception import images, random_weights

torch = pytest.importorskip("torch", reason="parity with PyTorch needs torch")
pytestmark = pytest.mark.parity

# By part: the columns that name a row of ours and of PyTorch's, and that of the difference between
# their outputs.
PEERS = {
    "train": ("step", "outputs_differ"),
    "autoencoders": ("by", "differ"),
    "sampling": ("sampler", None),
    "features": ("by", "differ"),
}


@pytest.mark.parametrize("name", PEERS)
def test_a_part_runs_with_what_it_names(tmp_path: Path, name: str):
    """Nothing else of this project's dependencies can be imported; outputs of both sides are the
    same to rounding.
    """
    site = blocker(("torch", *PARTS[name].packages))
    done = call(
        "--work",
        tmp_path / "w",
        "--tiny",
        "--parts",
        name,
        "--limit",
        f"{name}=900",
        site=site,
        folder=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    (attempt,) = results.read(tmp_path / "w")
    assert attempt["status"] == results.DONE, attempt["reason"]
    column, difference = PEERS[name]
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in attempt["rows"]:
        assert not row["remark"], row
        assert row["images_per_second"] > 0
        rows.setdefault(row[column], []).append(row)
    assert set(rows) == {"flowtrain", "torch.compile"}
    if difference is not None:
        assert all(row[difference] < 1e-5 for row in rows["torch.compile"])


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_weights(tmp_path_factory.mktemp("inception") / "random.pth")


def distance_of_rows(first: np.ndarray, second: np.ndarray) -> float:
    """Fréchet's, of features (n, d) each: with centred rows A and B, tr (S1 S2)^1/2 = ||A B^T||_* /
    (n - 1).
    """
    one, two = (
        rows.astype(np.float64) - rows.mean(axis=0, dtype=np.float64) for rows in (first, second)
    )
    spread = (
        np.square(one).sum()
        + np.square(two).sum()
        - 2 * np.linalg.svd(one @ two.T, compute_uv=False).sum()
    )
    means = first.mean(axis=0, dtype=np.float64) - second.mean(axis=0, dtype=np.float64)
    return float(np.square(means).sum() + spread / (len(first) - 1))


def test_distances_are_to_the_images_that_were_trained_on(tmp_path: Path, weights: Path):
    (tmp_path / inputs.INPUTS).mkdir()
    (tmp_path / inputs.INPUTS / inputs.INCEPTION).write_bytes(weights.read_bytes())
    options = {"encoder": "embedded", "samples": 6}
    context = Context("cifar", "", tmp_path, tmp_path / "rows", True, time.time() + 600, options)
    pixels = images(6, 16, 16)
    latents = encode(context, 16, pixels, np.zeros(6, np.int32), ("one",))
    scorer = Scorer(context, latents, pixels)
    # not the published ones: no FID
    assert scorer.metric.startswith("FD(inception-2015-12-05, weights ")
    row = scorer.reconstructions(6)
    assert row["samples"] == 6
    extract = load_inception(weights, PROTOCOLS["adm"].prepare, None)
    vae = load_vae("embedded")
    mean, _ = vae.encode(from_uint8(pixels))  # pyright: ignore[reportArgumentType]
    decoded = to_uint8(np.asarray(vae.decode(mean)))
    expected = distance_of_rows(extract(pixels).features, extract(decoded).features)
    assert row["distance"] == pytest.approx(expected, rel=0.02)  # latents are kept in float16
    same = scorer.distance(pixels)
    assert same is not None
    assert abs(same) < 1e-6 * expected
