"""`run.json`: what was trained on and how; evaluation needs the work directory alone."""

from pathlib import Path
from typing import Self

from pydantic import model_validator

from schemas.config import Recipe
from schemas.errors import UserError
from schemas.files import write_atomic
from schemas.growing import Growing
from schemas.json_text import parse_json
from schemas.manifest import Manifest, Normalization, VaeInfo
from schemas.manifest_checks import check_empty_classes
from schemas.sealed import FIELD, seal, unseal

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
    empty_classes: tuple[int, ...] = ()  # numbers of those that the dataset has no record of
    normalization: Normalization
    vae: VaeInfo | None  # None: pixel-space model
    parameters: int
    versions: dict[str, str]

    added = ("empty_classes",)

    @model_validator(mode="after")
    def _some_class_has_records(self) -> Self:
        check_empty_classes(self.empty_classes, len(self.classes))
        return self

    @property
    def sampled_classes(self) -> tuple[int, ...]:
        """Numbers of the classes that samples are drawn of without one being asked for: of a class
        without records the network has learned nothing.
        """
        empty = set(self.empty_classes)
        return tuple(number for number in range(len(self.classes)) if number not in empty)


def write_run(workdir: Path, run: Run) -> None:
    """Write `run.json` atomically, with a digest of its own."""
    write_atomic(workdir / RUN_NAME, seal(run.model_dump_json(indent=2) + "\n"))


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
        return Run.model_validate_json(_unsealed(path.read_bytes()))
    except ValueError:
        raise UserError(
            f"{path}: damaged, or written by another version of flowtrain; train in a new directory"
        ) from None


def _unsealed(data: bytes) -> str:
    """The text without its digest, which earlier commits did not write.

    Raises:
        ValueError: no JSON object, or its digest is another one.
    """
    content = parse_json(data)
    sealed = isinstance(content, dict) and FIELD in content
    return unseal(data) if sealed else data.decode()
