"""Results and statistics that were never measured."""

from pathlib import Path

import numpy as np

from evaluation.features.measure import Measured
from evaluation.features.rows import rows_path
from evaluation.protocols import EvaluationProtocol
from evaluation.results import Reference, Result, Sampling
from schemas.files import sha256_file
from schemas.statistics import FeatureStatistics, Moments
from tests.evaluation.tiny import RECIPE, TinyExtractor

SOURCE = {"kind": "source", "descriptor": "embedded:digits", "split": "train"}
PROTOCOL = EvaluationProtocol.resolve(RECIPE, TinyExtractor(), 8)


def result(
    steps: int = 20, cfg: float = 1.0, distance: float = 1.5, accuracy: float | None = 0.5
) -> Result:
    """One of the tiny protocol."""
    sampling = Sampling(
        run="r" * 64,
        step=3,
        weights="ema",
        sampler="euler",
        steps=steps,
        nfe=steps * (1 if cfg == 1 else 2),
        cfg=cfg,
        cfg_channels=None,
        labels="cyclic",
        seed=0,
        num_samples=10,
    )
    reference = Reference(digest="d" * 64, n=100, images=SOURCE)
    return Result(
        distance=distance,
        accuracy=accuracy,
        n=10,
        sampling=sampling,
        images={"kind": "dataset"},
        protocol=PROTOCOL,
        reference=reference,
        seconds={"generate": 2.0, "measure": 1.0},
    )


def measured(path: Path, features: np.ndarray, **others: object) -> Measured:
    """Statistics of feature rows (n, dim), which lie beside them."""
    file = rows_path(path)
    np.save(file, features.astype(np.float32))
    protocol = {"features": {"sha256": sha256_file(file)}}
    moments = Moments.of(features)
    return Measured(FeatureStatistics.from_moments(moments, protocol, **others), path)
