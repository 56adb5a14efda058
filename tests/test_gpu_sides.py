"""Rows of a peer whose counterpart of ours failed: its own rate is no baseline, and there is
nothing to differ from.
"""

import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.gpu_parts import autoencoders, features, results, sampling
from benchmarks.gpu_parts.part import Context

CASE = autoencoders.TINY_CASES[0]


class SamplingPeer:
    """Draws nothing, in a moment."""

    label = "peer"

    def prepare(self, *_: Any) -> str:
        return "cpu"

    def draw(self, *_: Any) -> float:
        return 0.5


class AutoencoderPeer:
    """The same outputs for every case."""

    label = "peer"

    def prepare(self, *_: Any) -> tuple[str, None]:
        return "cpu", None

    def outputs(self, *_: Any) -> np.ndarray:
        return np.ones(3, np.float32)

    def plan(self, *_: Any) -> dict[str, float]:
        return {"compile_seconds": 1.0}

    def time(self, *_: Any) -> float:
        return 0.5

    def peak(self) -> None:
        return None


class FeaturePeer:
    """The same features for every image."""

    label = "peer"

    def prepare(self, *_: Any) -> list[str]:
        return [self.label, "cpu"]

    def features(self, *_: Any) -> np.ndarray:
        return np.ones((2, 3), np.float32)

    def time(self, *_: Any) -> float:
        return 0.5


@pytest.fixture
def context(tmp_path: Path) -> Context:
    return Context("p", "", tmp_path, tmp_path / "rows.jsonl", True, time.time() + 600)


@pytest.mark.parametrize(("ours", "ratio"), [({}, None), ({("B", 1.0): 8.0}, 2.0)])
def test_sampling(context: Context, ours: dict[tuple[str, float], float], ratio: float | None):
    sampling._measure(context, SamplingPeer, "B", ours)
    row, guided = results.read_rows(context.rows)
    assert (row["images_per_second"], row["ours_over_this"]) == (4.0, ratio)
    assert guided["ours_over_this"] is None


@pytest.mark.parametrize("failed", [True, False])
def test_autoencoders(context: Context, failed: bool):
    found = autoencoders.Found()
    if not failed:
        found = autoencoders.Found(
            {CASE: 8.0}, {"encode": np.ones(3, np.float32), "decode": np.ones(3, np.float32)}
        )
    autoencoders._measure(context, AutoencoderPeer, [CASE], "", found)
    (row,) = results.read_rows(context.rows)
    assert row["images_per_second"] == 4.0
    assert (row["ours_over_this"], row["differ"]) == ((None, None) if failed else (2.0, 0.0))


@pytest.mark.parametrize("failed", [True, False])
def test_features(context: Context, failed: bool):
    found = features.Found()
    if not failed:
        found = features.Found({"inception": 8.0}, {"inception": np.ones((2, 3), np.float32)})
    emit = partial(context.emit, network="inception")
    features._measure(emit, FeaturePeer, ("inception", True, 2), (2, 32), found)
    (row,) = results.read_rows(context.rows)
    assert row["images_per_second"] == 4.0
    assert (row["ours_over_this"], row["differ"]) == ((None, None) if failed else (2.0, 0.0))
