"""From folders of PNGs to numbers through `flowtrain stats` and `eval`, beside pytorch-fid and
torch-fidelity.
"""

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from flowtrain.cli import main
from tests.parity.torch_inception import images, import_peer, low_rank_sqrtm, random_weights

torch = pytest.importorskip("torch", reason="parity with PyTorch needs torch")
pytestmark = pytest.mark.parity
SIDE = 40


def call(*arguments: object) -> Result:
    return CliRunner().invoke(
        main, [str(argument) for argument in arguments], catch_exceptions=False
    )


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_weights(tmp_path_factory.mktemp("inception") / "random.pth")


@pytest.fixture(scope="module")
def options(weights: Path) -> list[object]:
    return [
        "--extractor-weights",
        weights,
        "--extractor-sha256",
        hashlib.sha256(weights.read_bytes()).hexdigest(),
    ]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Twelve images each, in one folder, which is one class."""
    parent = tmp_path_factory.mktemp("folders")
    sets = {
        "real": images(12, SIDE, SIDE, seed=10),
        "made": images(12, SIDE, SIDE, seed=11) // 2 + 40,
    }
    for name, x in sets.items():
        (parent / name / "all").mkdir(parents=True)
        for index, image in enumerate(x):
            Image.fromarray(image).save(parent / name / "all" / f"{index:02d}.png")
    return parent / "real", parent / "made"


def compared(
    folders: tuple[Path, Path], tmp_path: Path, protocol: str, options: list[object], *more: object
) -> Any:
    reference = tmp_path / f"{protocol}.npz"
    how = ["--protocol", protocol, "--resolution", SIDE, "--crop", "none", *options]
    result = call("stats", folders[0], reference, *how, "--features")
    assert result.exit_code == 0, result.output
    result = call("eval", folders[1], "--reference", reference, *how, *more, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout.splitlines()[-1])


def test_pytorch_fid(
    weights: Path,
    folders: tuple[Path, Path],
    options: list[object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With weights that are not the published ones nothing is called an FID."""
    script, inception = import_peer("pytorch_fid.fid_score"), import_peer("pytorch_fid.inception")
    state = torch.load(weights, weights_only=True)
    monkeypatch.setattr(inception, "load_state_dict_from_url", lambda url, progress: state)
    monkeypatch.setattr(
        script, "linalg", SimpleNamespace(sqrtm=lambda x, disp: low_rank_sqrtm(x, disp, 24))
    )
    paths = [str(folder / "all") for folder in folders]
    expected = script.calculate_fid_given_paths(paths, 4, "cpu", 2048, num_workers=0)
    line = compared(folders, tmp_path, "pytorch-fid", options)
    print(line["fd"], expected)  # noqa: T201 (shown with `pytest -s`, and when the test fails)
    assert line["fd"] == pytest.approx(expected, rel=1e-3)
    assert "fid" not in line
    assert line["protocol"]["metric"].startswith("FD(inception-2015-12-05, weights ")


def test_torch_fidelity(
    weights: Path, folders: tuple[Path, Path], options: list[object], tmp_path: Path
) -> None:
    """FID, Inception Score, precision and recall; and ADM's spatial features, which only FID is
    compared for.
    """
    peer = import_peer("torch_fidelity.feature_extractor_inceptionv3")
    fid, isc = import_peer("torch_fidelity.metric_fid"), import_peer("torch_fidelity.metric_isc")
    prc = import_peer("torch_fidelity.metric_prc")
    extractor = peer.FeatureExtractorInceptionV3(
        "inception-v3-compat",
        ["2048", "logits_unbiased"],
        feature_extractor_weights_path=str(weights),
    )
    found = []
    for folder in folders:
        x = np.stack([np.asarray(Image.open(file)) for file in sorted((folder / "all").iterdir())])
        with torch.no_grad():
            found.append(extractor(torch.from_numpy(x).permute(0, 3, 1, 2)))
    (real, _), (made, logits) = found
    statistics = [fid.fid_features_to_statistics(features.double()) for features in (made, real)]
    line = compared(folders, tmp_path, "torch-fidelity", options, "--metrics", "is,pr")
    assert line["fd"] == pytest.approx(
        fid.fid_statistics_to_metric(*statistics, False)[fid.KEY_METRIC_FID], rel=1e-3
    )
    score = isc.isc_features_to_metric(logits, splits=10)
    assert line["metrics"]["inception_score"] == pytest.approx(
        score[isc.KEY_METRIC_ISC_MEAN], rel=1e-5
    )
    assert line["metrics"]["inception_score_std"] == pytest.approx(
        score[isc.KEY_METRIC_ISC_STD], rel=1e-4
    )
    values = prc.prc_features_to_metric(real, made, prc_neighborhood=3)
    assert line["metrics"]["precision"] == pytest.approx(values[prc.KEY_METRIC_PRECISION], abs=1e-6)
    assert line["metrics"]["recall"] == pytest.approx(values[prc.KEY_METRIC_RECALL], abs=1e-6)
    adm = compared(folders, tmp_path, "adm", options)
    assert adm["fd"] == pytest.approx(line["fd"], rel=1e-6)
    assert adm["metrics"]["sfid"] > 0
    assert adm["metrics"]["inception_score"] >= 1


def test_clean(folders: tuple[Path, Path], options: list[object], tmp_path: Path) -> None:
    """Another resize, another number; and statistics of one protocol are refused by another."""
    distances = {
        name: compared(folders, tmp_path, name, options)["fd"] for name in ("clean", "adm")
    }
    assert distances["clean"] != pytest.approx(distances["adm"], rel=1e-3)
    how = ["--protocol", "adm", "--resolution", SIDE, "--crop", "none", *options]
    result = call("eval", folders[1], "--reference", tmp_path / "clean.npz", *how)
    assert result.exit_code == 2
    assert "measured with prepare pil-bicubic, the samples with tf1-bilinear" in result.stderr


def test_weights_that_are_not_the_published_ones(
    weights: Path, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    how = ["--protocol", "adm", "--resolution", SIDE, "--extractor-weights", weights]
    result = call("stats", folders[0], tmp_path / "x.npz", *how)
    assert result.exit_code == 2
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert "SHA-256" in line
    assert "expected 6726825d" in line
    assert not (tmp_path / "x.npz").exists()
