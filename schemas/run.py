"""`run.json`: what was trained on and how; evaluation needs the work directory alone."""

import json
from pathlib import Path
from typing import Self

from pydantic import ValidationError

from schemas.config import Recipe
from schemas.errors import UserError
from schemas.files import write_atomic
from schemas.growing import Growing
from schemas.manifest import Manifest, Normalization, VaeInfo

RUN_NAME = "run.json"
METRICS_NAME = "metrics.jsonl"
CHECKPOINTS_DIR = "checkpoints"
SAMPLES_DIR = "samples"  # datasets of samples, one a setting
EVAL_DIR = "eval"  # statistics, tables and plots of `flowtrain eval`


class DatasetRef(Growing):
    """The dataset of a run; `digest` is `Manifest.digest()`."""

    path: str
    digest: str
    split: str
    records: int
    flips: bool
    source: str
    resolution: int

    @classmethod
    def of(cls, path: str, manifest: Manifest) -> Self:
        """That of a finished dataset at `path`."""
        return cls(
            path=path,
            digest=manifest.digest(),
            split=manifest.split,
            records=manifest.counts.written,
            flips=manifest.flips,
            source=manifest.source.descriptor,
            resolution=manifest.resolution,
        )


class Run(Growing):
    """A training run: its recipe and the facts of its dataset that the model depends on."""

    recipe: Recipe
    dataset: DatasetRef
    latent_shape: tuple[int, int, int]  # (h, w, c) that the model sees
    classes: tuple[str, ...]
    normalization: Normalization
    vae: VaeInfo | None  # None: pixel-space model
    parameters: int
    versions: dict[str, str]


def write_run(workdir: Path, run: Run) -> None:
    """Write `run.json` atomically."""
    write_atomic(workdir / RUN_NAME, run.model_dump_json(indent=2) + "\n")


def read_run(workdir: Path) -> Run:
    """Read `run.json` of a work directory.

    Raises:
        UserError: it is missing or damaged.
    """
    path = workdir / RUN_NAME
    if not path.is_file():
        raise UserError(
            f"{workdir}: no {RUN_NAME}, so this is no training run; make one with `flowtrain train`"
        )
    try:
        return Run.model_validate(json.loads(path.read_text()))
    except (ValueError, ValidationError):
        raise UserError(
            f"{path}: damaged, or written by another version of flowtrain; train in a new directory"
        ) from None
