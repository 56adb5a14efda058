"""`results.jsonl`: a line a number with all that it depends on, computed once."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Self

from pydantic import Field

from evaluation.protocols import EvaluationProtocol
from schemas.errors import UserError
from schemas.files import write_atomic
from schemas.growing import Growing
from schemas.json_text import parse_object
from schemas.locked import ask_for_lock
from schemas.sampler import SamplerSettings
from schemas.sealed import seal_line, unseal_line
from schemas.solvers import EVERYWHERE
from schemas.statistics import FeatureStatistics

RESULTS_NAME = "results.jsonl"
# of a line, beside the distance and the settings of its samples
_FIELDS = frozenset(
    {"metrics", "mean_nfe", "accuracy", "n", "protocol", "reference", "images", "seconds"}
)
LOCK_NAME = "results.lock"


class Sampling(Growing):
    """What a set of generated samples depends on, independent of where the run lies.

    On disk `settings` lie flat beside the rest. `run` is the digest of the run (recipe, dataset,
    classes); `weights` is "params" or the name of an average
    (`flowtrain.state.checkpoint.load_for_sampling`); `sampler` is the solver, `steps` 0 where it
    chooses its own within `tolerance`; `nfe` counts network evaluations a sample, those of the
    unconditional half of guidance included, and is None where they differ between samples;
    `labels` is "cyclic" (i modulo classes), "uniform", "frequencies" with a digest, or a class's
    name.
    """

    run: str
    step: int
    weights: str
    sampler: str
    steps: int
    nfe: int | None
    cfg: float
    cfg_channels: int | None
    cfg_interval: tuple[float, float] = EVERYWHERE
    shift: float = 1.0
    tolerance: float | None = None
    labels: str
    seed: int
    num_samples: int

    @classmethod
    def of(
        cls,
        settings: SamplerSettings,
        *,
        run: str,
        step: int,
        weights: str,
        labels: str,
        num_samples: int,
    ) -> Self:
        """Of samples drawn with some settings; the other facts are the fields of their names."""
        facts = asdict(settings)
        return cls(
            run=run,
            step=step,
            weights=weights,
            sampler=facts.pop("solver"),
            nfe=settings.nfe,
            labels=labels,
            num_samples=num_samples,
            **facts,
        )

    @property
    def settings(self) -> SamplerSettings:
        """Inverse of `of`."""
        names = [field.name for field in fields(SamplerSettings) if field.name != "solver"]
        return SamplerSettings(self.sampler, **{name: getattr(self, name) for name in names})


class Reference(Growing):
    """The statistics compared with; `digest` is that of mu and sigma."""

    digest: str
    n: int | None
    images: dict[str, Any]


class Result(Growing):
    """One distance, and what else was measured beside it (`metrics`, by the names of
    `evaluation.score.groups.GROUPS`).

    `sampling` is None where images were only compared; then `images` says which. `mean_nfe` is what
    an adaptive solver took, network evaluations a sample.
    """

    distance: float
    metrics: dict[str, float] = Field(default_factory=dict)
    mean_nfe: float | None = None
    accuracy: float | None
    n: int
    sampling: Sampling | None
    images: dict[str, Any]
    protocol: EvaluationProtocol
    reference: Reference
    seconds: dict[str, float]

    @property
    def nfe(self) -> float:
        """Network evaluations a sample, where there are samples."""
        fixed = self.sampling.nfe if self.sampling else None
        return float(fixed if fixed is not None else self.mean_nfe or 0)

    @property
    def identity(self) -> tuple[object, ...]:
        """Equal for two results that must be equal numbers."""
        subject = self.sampling or json.dumps(self.images, sort_keys=True)
        return subject, self.protocol, self.reference.digest

    def says(self, other: "Result") -> bool:
        """Whether the numbers of another result are among these."""
        return self.distance == other.distance and other.metrics.items() <= self.metrics.items()

    def to_json(self) -> dict[str, Any]:
        """Flat, the distance under `fid` or `fd`, the sampling facts beside it."""
        return {
            self.protocol.key: self.distance,
            "metrics": self.metrics,
            "mean_nfe": self.mean_nfe,
            "accuracy": self.accuracy,
            "n": self.n,
            **(self.sampling.model_dump() if self.sampling else {}),
            "protocol": self.protocol.model_dump(),
            "reference": self.reference.model_dump(),
            "images": self.images,
            "seconds": self.seconds,
        }

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Result":
        """Inverse of `to_json`.

        Raises:
            ValueError: a value does not fit (pydantic's error is one), or a field is unknown.
            KeyError: a field is missing.
        """
        protocol = EvaluationProtocol.model_validate(content["protocol"])
        unknown = content.keys() - _FIELDS - Sampling.model_fields.keys() - {protocol.key}
        if unknown:
            raise ValueError(f"unknown fields: {', '.join(sorted(unknown))}")
        sampling = {name: content[name] for name in Sampling.model_fields if name in content}
        return cls(
            distance=content[protocol.key],
            metrics=content.get("metrics", {}),
            mean_nfe=content.get("mean_nfe"),
            accuracy=content["accuracy"],
            n=content["n"],
            sampling=Sampling.model_validate(sampling) if sampling else None,
            images=content["images"],
            protocol=protocol,
            reference=Reference.model_validate(content["reference"]),
            seconds=content["seconds"],
        )


def reference_of(statistics: FeatureStatistics) -> Reference:
    """The identity of reference statistics."""
    digest = hashlib.sha256(statistics.mu.tobytes() + statistics.sigma.tobytes()).hexdigest()
    images = dict(statistics.protocol.get("images", {}))
    return Reference(
        digest=digest, n=statistics.moments.n if statistics.moments else None, images=images
    )


def read_results(workdir: Path) -> list[Result]:
    """Every result of a work directory, oldest first; a last line cut by a kill is left out.

    Raises:
        UserError: a line that is no result.
    """
    path = workdir / RESULTS_NAME
    return [result for result, _ in _read_lines(path)]


def _read_lines(path: Path) -> list[tuple[Result, bytes]]:
    """Each result with its line, as it is in the file; raises as `read_results`."""
    if not path.is_file():
        return []
    found = []
    whole = path.read_bytes().split(b"\n")[:-1]  # without a last one that a kill has cut
    for number, line in enumerate(whole, start=1):
        try:
            found.append((Result.from_json(parse_object(unseal_line(line))), line + b"\n"))
        except (ValueError, KeyError, TypeError):
            raise UserError(
                f"{path}: line {number} is damaged, or no result of this release; delete it and "
                "repeat `flowtrain eval`"
            ) from None
    return found


def append_result(workdir: Path, result: Result) -> None:
    """Add one line; the file is replaced whole, so a kill leaves the old or the new one.

    Several commands may append to one work directory: each reads what the others wrote while it
    holds the lock, and adds nothing to what one of them has measured meanwhile.
    """
    with open(workdir / LOCK_NAME, "w") as lock:
        # the kernel lets go of it, however the process ends
        ask_for_lock(lock.fileno(), workdir / LOCK_NAME, wait=True)
        there = _read_lines(workdir / RESULTS_NAME)
        known = find_result([each for each, _ in there], result.identity)
        if known is not None and known.says(result):
            return
        line = seal_line(json.dumps(result.to_json(), allow_nan=False)) + "\n"
        lines = b"".join(line for _, line in there)  # as they are
        write_atomic(workdir / RESULTS_NAME, lines + line.encode())


def find_result(results: Sequence[Result], identity: tuple[object, ...]) -> Result | None:
    """The newest result of an identity, if it was measured before."""
    return next((result for result in reversed(results) if result.identity == identity), None)
