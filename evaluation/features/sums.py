"""Everything added up over images, and a worker's file of it for the last step.

As elements of a pipeline sums would be copied by the runner several times over: they are 34 MB at
2048 features.
"""

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from evaluation.metrics.inception_score import ScoreSums, Splits, add_splits
from schemas.arrays import load_arrays
from schemas.files import write_atomic
from schemas.statistics import Moments


@dataclass(frozen=True)
class Sums:
    """Feature moments, images classified as labelled, and images that cannot be read.

    `spatial` are the moments of sFID's features, `scores` the Inception Score's sums by split,
    `labels` (classes,) int64 how many images there are of each class.
    """

    moments: Moments
    labels: NDArray[np.int64]
    correct: int = 0
    rejected: int = 0
    spatial: Moments | None = None
    scores: Splits = field(default_factory=dict)

    def __add__(self, other: "Sums") -> "Sums":
        """Of both sets of images, measured under one protocol."""
        spatial = (
            None if self.spatial is None or other.spatial is None else self.spatial + other.spatial
        )
        return Sums(
            self.moments + other.moments,
            self.labels + other.labels,
            self.correct + other.correct,
            self.rejected + other.rejected,
            spatial,
            add_splits(self.scores, other.scores),
        )

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """By name; `from_arrays` is the inverse."""
        numbers = sorted(self.scores)
        scores = [self.scores[number] for number in numbers]
        arrays: dict[str, Any] = {
            "labels": self.labels,
            "counts": np.array([self.correct, self.rejected]),
            "score_numbers": np.array(numbers, np.int64),
            "score_n": np.array([each.n for each in scores], np.int64),
            "score_plogp": np.array([each.plogp for each in scores]),
            "score_p": np.array([each.p for each in scores]),
        }
        for name, moments in (("features", self.moments), ("spatial", self.spatial)):
            if moments is not None:
                parts = {"n": np.int64(moments.n), "total": moments.total, "outer": moments.outer}
                arrays |= {f"{name}_{part}": value for part, value in parts.items()}
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Self:
        """Raises `KeyError` where one is missing."""

        def moments(name: str) -> Moments:
            return Moments(
                int(arrays[f"{name}_n"]), arrays[f"{name}_total"], arrays[f"{name}_outer"]
            )

        columns = (arrays[f"score_{name}"].tolist() for name in ("numbers", "n", "plogp"))
        scores = {
            number: ScoreSums(n, plogp, p)
            for number, n, plogp, p in zip(*columns, arrays["score_p"], strict=True)
        }
        correct, rejected = arrays["counts"].tolist()
        spatial = moments("spatial") if "spatial_n" in arrays else None
        return cls(moments("features"), arrays["labels"], correct, rejected, spatial, scores)


def write_sums(path: Path, sums: Sums, of: Mapping[str, Any]) -> None:
    """Write an .npz, in one piece or not at all; `of` says what was measured, as JSON."""
    content = io.BytesIO()
    arrays: dict[str, Any] = {**sums.to_arrays(), "of": np.array(json.dumps(of, sort_keys=True))}
    np.savez(content, **arrays)
    write_atomic(path, content.getvalue())


def read_sums(path: Path, of: Mapping[str, Any]) -> Sums | None:
    """A file's sums; None where they are missing, damaged, or of another origin."""
    try:
        arrays = load_arrays(path)
        if str(arrays["of"]) != json.dumps(of, sort_keys=True):
            return None
        return Sums.from_arrays(arrays)
    except (ValueError, TypeError, KeyError):
        return None
