"""`benchmarks/fid_protocols.py` without a network: which images, what a kill leaves, what counts as
disagreement.
"""

import math
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch", reason="parity with PyTorch needs torch")
from benchmarks import fid_protocols as benchmark

pytestmark = pytest.mark.parity


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Twenty images in two classes, each of one grey that tells it."""
    parent = tmp_path / "images"
    for index in range(20):
        path = parent / f"class{index // 10}" / f"{index % 10}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 12, 3), index, np.uint8)).save(path)
    return parent


@pytest.fixture
def network(tmp_path: Path) -> Path:
    path = tmp_path / "network.pt"
    path.write_bytes(b"network")
    return path


def greys(files: Sequence[Path]) -> list[int]:
    return [int(np.asarray(Image.open(file)).flat[0]) for file in files]


def test_two_sets_without_a_common_image(tmp_path: Path, images: Path, network: Path) -> None:
    files = benchmark.prepare(tmp_path / "work", images, 8, 4, network)
    assert greys(files["first"]) == [0, 4, 10, 14]
    assert greys(files["second"]) == [1, 5, 11, 15]
    assert {np.asarray(Image.open(file)).shape for file in files["first"]} == {(8, 8, 3)}
    archive = tmp_path / "images.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(images, ".")
    of_tar = benchmark.prepare(tmp_path / "other", archive, 8, 4, network)
    assert [greys(of_tar[name]) for name in benchmark.SETS] == [
        greys(files[name]) for name in benchmark.SETS
    ]


def test_a_folder_of_another_setting(tmp_path: Path, images: Path, network: Path) -> None:
    benchmark.prepare(tmp_path / "work", images, 8, 4, network)
    benchmark.prepare(tmp_path / "work", images, 8, 4, network)
    with pytest.raises(ValueError, match="another setting"):
        benchmark.prepare(tmp_path / "work", images, 8, 5, network)
    with pytest.raises(ValueError, match="there are 10 images for each set"):
        benchmark.prepare(tmp_path / "new", images, 8, 11, network)
    network.write_bytes(b"another")
    with pytest.raises(ValueError, match="another setting"):
        benchmark.prepare(tmp_path / "work", images, 8, 4, network)


def test_what_was_computed_is_kept(
    tmp_path: Path, images: Path, network: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "CHUNK", 3)
    files = benchmark.prepare(tmp_path / "work", images, 8, 10, network)
    computed: list[list[int]] = []

    def features(asked: Sequence[Path]) -> np.ndarray:
        if len(computed) == 2:
            raise KeyboardInterrupt
        computed.append(greys(asked))
        return np.array(computed[-1], np.float32)[:, None]

    with pytest.raises(KeyboardInterrupt):
        benchmark.Measurement(tmp_path / "work", files)._features("ours", features)
    computed.append([])
    first, second = benchmark.Measurement(tmp_path / "work", files)._features("ours", features)
    assert computed == [
        [0, 2, 4],
        [6, 8, 10],
        [],
        [12, 14, 16],
        [18],
        [1, 3, 5],
        [7, 9, 11],
        [13, 15, 17],
        [19],
    ]
    np.testing.assert_array_equal(first[:, 0], np.arange(0, 20, 2))
    np.testing.assert_array_equal(second[:, 0], np.arange(1, 20, 2))


def test_what_counts_as_disagreement() -> None:
    def failures(n: int, theirs: benchmark.Distance, features: float = 1e-6) -> int:
        return len(benchmark.Row("adm", "other", 5.0, theirs, 5.0, features).failures(n))

    assert failures(2500, 5.0004) == 0
    assert failures(2500, 5.0006) == 1
    assert failures(2500, math.nan) == 1
    assert failures(2500, "none: singular") == 1
    assert failures(2048, "none: singular") == 0
    assert failures(2048, 5.0, features=2e-4) == 1
    assert failures(2500, 6.0, features=math.nan) == 2
