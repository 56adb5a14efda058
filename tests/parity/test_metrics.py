"""Metrics from features beside torch-fidelity's, on the same features."""

import importlib
import importlib.util
import inspect
import sys
from typing import Any

import numpy as np
import pytest

from evaluation.metrics import frechet_distance
from evaluation.metrics.inception_score import (
    ScoreSums,
    inception_score,
    shuffled_splits,
    split_sums,
)
from evaluation.metrics.kernel import kernel_distance
from evaluation.metrics.neighbours import precision_recall
from tests.parity.stubs import stub_torchvision

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.parity
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def fidelity() -> dict[str, Any]:
    """torch-fidelity's modules by the names of their metrics."""
    if importlib.util.find_spec("torch_fidelity") is None:
        pytest.skip("metrics are compared with torch-fidelity")
    with stub_torchvision():
        return {
            name: importlib.import_module(f"torch_fidelity.metric_{name}")
            for name in ("isc", "fid", "kid", "prc")
        }


def sets(dim: int = 48, offset: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Positive features as after an average pool, of two kinds: (600, dim) and (500, dim)
    float32.
    """
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(dim, dim)) / np.sqrt(dim)
    first, second = (np.maximum(rng.normal(size=(n, dim)) @ mixing + 0.3, 0) for n in (600, 500))
    return (first + offset).astype(np.float32), (1.1 * second + 0.02 + offset).astype(np.float32)


@pytest.mark.parametrize("splits", [1, 7, 10])
def test_inception_score(fidelity: dict[str, Any], splits: int) -> None:
    logits = (2.5 * np.random.default_rng(1).normal(size=(333, 1008))).astype(np.float32)
    theirs = fidelity["isc"].isc_features_to_metric(torch.from_numpy(logits), splits=splits)
    mean, deviation = inception_score(
        list(split_sums(logits, shuffled_splits(len(logits), splits)).values())
    )
    assert mean == pytest.approx(theirs["inception_score_mean"], rel=TOLERANCE)
    assert deviation == pytest.approx(theirs["inception_score_std"], rel=TOLERANCE, abs=1e-12)


def test_inception_score_in_order(fidelity: dict[str, Any]) -> None:
    logits = np.random.default_rng(2).normal(size=(90, 10)).astype(np.float32)
    theirs = fidelity["isc"].isc_features_to_metric(
        torch.from_numpy(logits), splits=3, shuffle=False
    )
    mean, deviation = inception_score([ScoreSums.of(part) for part in np.split(logits, 3)])
    assert mean == pytest.approx(theirs["inception_score_mean"], rel=TOLERANCE)
    assert deviation == pytest.approx(theirs["inception_score_std"], rel=TOLERANCE)


@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_frechet_distance(fidelity: dict[str, Any], offset: float) -> None:
    theirs = fidelity["fid"]
    statistics = [
        theirs.fid_features_to_statistics(torch.from_numpy(part.astype(np.float64)))
        for part in sets(48, offset)
    ]
    expected = theirs.fid_statistics_to_metric(*statistics, verbose=False)[
        "frechet_inception_distance"
    ]
    one, two = statistics
    assert frechet_distance(one["mu"], one["sigma"], two["mu"], two["sigma"]) == pytest.approx(
        expected, rel=TOLERANCE
    )


def test_kernel_distance(fidelity: dict[str, Any]) -> None:
    first, second = sets()
    found = kernel_distance(first, second, subsets=20, subset_size=200)
    # float32: their own round-off
    for dtype, tolerance in (
        (np.float64, TOLERANCE),
        (np.float32, 1e-3),
    ):
        tensors = [torch.from_numpy(part.astype(dtype)) for part in (first, second)]
        theirs = fidelity["kid"].kid_features_to_metric(
            *tensors, kid_subsets=20, kid_subset_size=200, verbose=False
        )
        assert found.kid == pytest.approx(theirs["kernel_inception_distance_mean"], rel=tolerance)
        assert found.kid_std == pytest.approx(
            theirs["kernel_inception_distance_std"], rel=tolerance
        )


def test_defaults(fidelity: dict[str, Any]) -> None:
    theirs = sys.modules["torch_fidelity.defaults"].DEFAULTS
    kernel, splits, manifold = (
        {
            name: parameter.default
            for name, parameter in inspect.signature(function).parameters.items()
        }
        for function in (kernel_distance, shuffled_splits, precision_recall)
    )
    assert (kernel["subsets"], kernel["subset_size"]) == (
        theirs["kid_subsets"],
        theirs["kid_subset_size"],
    )
    assert kernel["seed"] == splits["seed"] == theirs["rng_seed"]
    assert splits["splits"] == theirs["isc_splits"]
    assert manifold["k"] == theirs["prc_neighborhood"]


@pytest.mark.parametrize("save_cpu_ram", [False, True])
@pytest.mark.parametrize("k", [1, 3])
def test_precision_and_recall(fidelity: dict[str, Any], k: int, save_cpu_ram: bool) -> None:
    real, fake = sets()
    fake[:40] = real[100:140]
    theirs = fidelity["prc"].prc_features_to_metric(
        torch.from_numpy(fake.astype(np.float64)),
        torch.from_numpy(real.astype(np.float64)),
        prc_neighborhood=k,
        save_cpu_ram=save_cpu_ram,
        verbose=False,
    )
    precision, recall = precision_recall(real, fake, k, block=150)
    assert 0.1 < recall < 0.95
    assert 0.1 < precision < 0.95
    assert precision == pytest.approx(theirs["precision"], rel=TOLERANCE)
    assert recall == pytest.approx(theirs["recall"], rel=TOLERANCE)
