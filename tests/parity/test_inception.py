"""The FID Inception network and its preparations beside pytorch-fid, torch-fidelity and clean-fid;
random weights.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from evaluation.extractors.inception import (
    InceptionExtractor,
    convert,
    layout,
    load_inception,
    network,
)
from evaluation.extractors.inception_weights import read_tensors
from evaluation.extractors.resize import PREPARATIONS, by_128, pil_bicubic, tf1_bilinear
from evaluation.metrics import frechet_distance
from tests.parity.torch_inception import (
    images,
    import_peer,
    low_rank_sqrtm,
    random_weights,
)

torch = pytest.importorskip("torch", reason="parity with PyTorch needs torch")
pytestmark = pytest.mark.parity

SIZES = [(32, 32), (64, 48), (299, 299), (333, 512), (1, 7)]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_weights(tmp_path_factory.mktemp("inception") / "random.pth")


@pytest.fixture(scope="module")
def loaded(weights: Path) -> InceptionExtractor:
    return load_inception(weights, "tf1-bilinear", expected=None, batch=2)


def with_preparation(extractor: InceptionExtractor, prepare: str) -> InceptionExtractor:
    return InceptionExtractor(extractor.digest, prepare, extractor.batch, extractor.params)


def rows(extractor: InceptionExtractor, x: np.ndarray) -> list[np.ndarray]:
    """Features, logits and spatial features."""
    outputs = extractor(x)
    assert outputs.spatial is not None
    return [outputs.features, outputs.logits, outputs.spatial]


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference against the largest value."""
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def torch_layout(x: np.ndarray) -> Any:
    return torch.from_numpy(x).permute(0, 3, 1, 2)


def test_torch_fidelity(weights: Path, loaded: InceptionExtractor) -> None:
    """Features, logits without bias, and the first channels of Mixed_6d, from uint8 images of two
    sizes.
    """
    peer = import_peer("torch_fidelity.feature_extractor_inceptionv3")
    assert len(torch.load(weights, weights_only=True)) == 566
    theirs = peer.FeatureExtractorInceptionV3(
        "inception-v3-compat",
        ["2048", "logits_unbiased"],
        feature_extractor_weights_path=str(weights),
    )
    kept: dict[str, Any] = {}
    theirs.Mixed_6d.register_forward_hook(lambda module, inputs, output: kept.update(block=output))
    theirs.Mixed_6d.branch1x1.register_forward_hook(
        lambda module, inputs, output: kept.update(branch=output)
    )
    for x in (images(2, 64, 48), images(1, 320, 299, seed=1)):
        with torch.no_grad():
            features, logits = (output.numpy() for output in theirs(torch_layout(x)))
        spatial = kept["block"][:, :7].permute(0, 2, 3, 1).reshape(len(x), -1).numpy()
        assert torch.equal(kept["block"][:, :7], kept["branch"][:, :7])
        found = rows(loaded, x)
        assert [part.shape for part in found] == [
            (len(x), 2048),
            (len(x), 1008),
            (len(x), loaded.spatial_dim),
        ]
        assert [part.dtype for part in found] == [np.float32] * 3
        pairs = zip(
            ("features", "logits", "spatial"), found, (features, logits, spatial), strict=True
        )
        errors = {name: relative_error(ours, theirs) for name, ours, theirs in pairs}
        print(errors)  # noqa: T201 (shown with `pytest -s`, and when the test fails)
        assert max(errors.values()) < 1e-5


def test_the_same_rows_however_images_are_cut(loaded: InceptionExtractor) -> None:
    x = images(3, 20, 30, seed=2)
    whole, first, rest = rows(loaded, x), rows(loaded, x[:1]), rows(loaded, x[1:])
    for all_rows, *parts in zip(whole, first, rest, strict=True):
        np.testing.assert_array_equal(np.concatenate(parts), all_rows)
    assert [part.shape for part in rows(loaded, x[:0])] == [(0, 2048), (0, 1008), (0, 2023)]


def test_pytorch_fid_from_folders(
    weights: Path, loaded: InceptionExtractor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole way from two folders of PNGs to the distance, by pytorch-fid's own calculation, and
    the features.
    """
    script = import_peer("pytorch_fid.fid_score")
    inception = import_peer("pytorch_fid.inception")
    theirs: list[np.ndarray] = []
    activations = script.get_activations

    def recorded(*arguments: Any) -> np.ndarray:
        theirs.append(activations(*arguments))
        return theirs[-1]

    monkeypatch.setattr(
        inception,
        "load_state_dict_from_url",
        lambda url, progress: torch.load(weights, weights_only=True),
    )
    monkeypatch.setattr(script, "get_activations", recorded)
    monkeypatch.setattr(script, "linalg", SimpleNamespace(sqrtm=low_rank_sqrtm))
    sets = {"real": images(4, 40, 52, seed=10), "made": images(4, 40, 52, seed=11) // 2 + 40}
    for name, x in sets.items():
        (tmp_path / name).mkdir()
        for index, image in enumerate(x):
            Image.fromarray(image).save(tmp_path / name / f"{index}.png")
    folders = [tmp_path / name for name in sets]
    reference = script.calculate_fid_given_paths(
        [str(folder) for folder in folders], 4, "cpu", 2048, num_workers=0
    )

    extractor = with_preparation(loaded, "torch-bilinear")
    moments: list[np.ndarray] = []
    for folder, expected in zip(folders, theirs, strict=True):
        features = extractor(
            np.stack([np.asarray(Image.open(file)) for file in sorted(folder.iterdir())])
        ).features
        assert relative_error(features, expected) < 1e-5
        moments += [
            features.mean(axis=0, dtype=np.float64),
            np.cov(features.astype(np.float64), rowvar=False),
        ]
    distance = frechet_distance(*moments)
    print(distance, reference)  # noqa: T201
    assert distance == pytest.approx(reference, rel=1e-3)
    assert distance > 1


@pytest.mark.parametrize("size", SIZES)
def test_tf1_bilinear(size: tuple[int, int]) -> None:
    """Bit for bit outside of a compiled function; within one, products and sums may be fused."""
    resize = import_peer(
        "torch_fidelity.interpolate_compat_tensorflow"
    ).interpolate_bilinear_2d_like_tensorflow1x
    x = images(2, *size)
    expected = (
        resize(torch_layout(x).float(), size=(299, 299), align_corners=False)
        .permute(0, 2, 3, 1)
        .numpy()
    )
    np.testing.assert_array_equal(np.asarray(tf1_bilinear(jnp.asarray(x), 299)), expected)
    compiled = jax.jit(PREPARATIONS["tf1-bilinear"].device, static_argnums=1)(jnp.asarray(x), 299)
    np.testing.assert_allclose(
        np.asarray(compiled), np.asarray(by_128(jnp.asarray(expected))), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("target", [299, 224])
def test_torch_bilinear(size: tuple[int, int], target: int) -> None:
    x = images(2, *size)
    scaled = torch_layout(x).float() / 255
    resized = torch.nn.functional.interpolate(
        scaled, size=(target, target), mode="bilinear", align_corners=False
    )
    expected = 2 * resized.permute(0, 2, 3, 1).numpy() - 1
    for prepare in (
        PREPARATIONS["torch-bilinear"].device,
        jax.jit(PREPARATIONS["torch-bilinear"].device, static_argnums=1),
    ):
        np.testing.assert_allclose(
            np.asarray(prepare(jnp.asarray(x), target)), expected, rtol=0, atol=1e-6
        )


@pytest.mark.filterwarnings("ignore:'mode' parameter is deprecated:DeprecationWarning")
@pytest.mark.parametrize("size", SIZES)
def test_pil_bicubic(size: tuple[int, int]) -> None:
    """clean-fid's resize, and what its network then does to the values."""
    resize = import_peer("cleanfid.resize").build_resizer("clean")
    x = images(2, *size)
    expected = np.stack([resize(image) for image in x])
    np.testing.assert_array_equal(pil_bicubic(x, 299), expected)
    prepared = np.asarray(PREPARATIONS["pil-bicubic"](x, 299))
    assert prepared.dtype == np.float32
    np.testing.assert_array_equal(prepared, ((torch.from_numpy(expected) - 128) / 128).numpy())


@pytest.mark.parametrize("prepare", PREPARATIONS)
def test_preparations_reach_the_network(loaded: InceptionExtractor, prepare: str) -> None:
    """Padded batches and the split between host and device change nothing.

    clean-fid's own network is a TorchScript file that is not here: its resize is compared above,
    its network is this.
    """
    x = images(1, 50, 70, seed=3)
    prepared = PREPARATIONS[prepare](x, 299)
    expected, _, _ = jax.jit(network)(loaded.params, prepared)
    assert (
        relative_error(with_preparation(loaded, prepare)(x).features, np.asarray(expected)) < 1e-5
    )


@pytest.mark.parametrize("archive", [True, False], ids=["archive", "stream"])
def test_files_without_counters_in_either_format(
    weights: Path, tmp_path: Path, archive: bool
) -> None:
    state = {
        name: value
        for name, value in torch.load(weights, weights_only=True).items()
        if "tracked" not in name
    }
    path = tmp_path / "other.pth"
    torch.save(state, path, _use_new_zipfile_serialization=archive)
    found, expected = (convert(read_tensors(file, layout())) for file in (path, weights))
    assert len(found) == 95
    assert jax.tree.all(jax.tree.map(np.array_equal, found, expected))
