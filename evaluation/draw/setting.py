"""What to draw of a model: the setting of a set of samples, its facts, its name and the command
that draws it.
"""

import hashlib
import json
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from evaluation.results import Sampling
from schemas.config import BOOKKEEPING, ENDLESS_SCHEDULES, UNLEARNED, SamplerConfig
from schemas.run import Run
from schemas.solvers import ADAPTIVE, EVALUATIONS, EVERYWHERE

if TYPE_CHECKING:
    from flowtrain.state.checkpoint import TrainedModel

CYCLIC, UNIFORM = "cyclic", "uniform"
TOLERANCE = 1e-5  # of a solver that chooses its steps


@dataclass(frozen=True)
class Setting:
    """What to draw. `solver` goes with the run; `steps` is 0 where it chooses its own, within
    `tolerance`.

    Classes: `label` for all, or by `rule`: sample i has class i modulo the number of classes
        ("cyclic"), or one that
    follows from (seed, i) alone, "uniform" or with `frequencies` (one a class, any scale).
    """

    num: int
    steps: int
    cfg: float
    cfg_channels: int | None = None
    label: int | None = None
    seed: int = 0
    solver: str = "euler"
    cfg_interval: tuple[float, float] = EVERYWHERE
    shift: float = 1.0
    tolerance: float | None = None
    rule: str = CYCLIC
    frequencies: tuple[float, ...] | None = None

    @classmethod
    def of(cls, sampler: SamplerConfig, num: int, **changes: Any) -> "Setting":
        """As a recipe has it, but for `changes`."""
        names = ("steps", "cfg", "cfg_channels", "solver", "cfg_interval", "shift")
        values = {**{name: getattr(sampler, name) for name in names}, **changes}
        if values["solver"] == ADAPTIVE:
            values |= {"steps": 0, "shift": 1.0, "tolerance": values.get("tolerance") or TOLERANCE}
        return cls(num, **values)

    @property
    def nfe(self) -> int | None:
        """Network evaluations a sample; guidance doubles them. None: as many as each needs."""
        if self.solver == ADAPTIVE:
            return None
        return self.steps * EVALUATIONS[self.solver] * (1 if self.cfg == 1 else 2)

    @property
    def effort(self) -> str:
        """How far the solver goes, in words."""
        return f"tolerance {self.tolerance:g}" if self.solver == ADAPTIVE else f"{self.steps} steps"

    def labels(self, indices: NDArray[np.int64], num_classes: int) -> NDArray[np.int32]:
        """(n,) classes of samples `indices` (n,)."""
        if self.label is not None:
            return np.full(indices.shape, self.label, np.int32)
        if self.rule == CYCLIC:
            return (indices % num_classes).astype(np.int32)
        from flowtrain.records.counter import Purpose, host_bits

        chance = (host_bits(self.seed, Purpose.SAMPLE_LABEL, 0, indices) >> np.uint64(11)).astype(
            np.float64
        ) * 2.0**-53
        weights = (
            np.ones(num_classes)
            if self.frequencies is None
            else np.array(self.frequencies, np.float64)
        )
        edges = np.cumsum(weights) / weights.sum()
        return np.minimum(np.searchsorted(edges, chance, side="right"), num_classes - 1).astype(
            np.int32
        )

    def labels_fact(self, classes: tuple[str, ...]) -> str:
        """The rule of the classes, for JSON."""
        if self.label is not None:
            return classes[self.label]
        if self.frequencies is None:
            return self.rule
        return (
            f"frequencies {hashlib.sha256(json.dumps(self.frequencies).encode()).hexdigest()[:12]}"
        )


def run_digest(run: Run) -> str:
    """SHA-256 of everything in run.json that the weights of a step depend on, and nothing of where
    and how it ran.
    """
    train = set(BOOKKEEPING)
    if run.recipe.optimizer.schedule in ENDLESS_SCHEDULES:
        train.add("steps")  # a run that was made longer is the same run
    recipe = {"sampler": True, "preview": True, "train": train, "model": set(UNLEARNED)}
    content = run.model_dump(
        mode="json", exclude={"dataset": {"path"}, "versions": True, "recipe": recipe}
    )
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def sampling_facts(trained: "TrainedModel", setting: Setting) -> Sampling:
    """What the samples of a setting depend on."""
    classes = trained.run.classes
    return Sampling(
        run=run_digest(trained.run),
        step=trained.step,
        weights=trained.weights,
        sampler=setting.solver,
        steps=setting.steps,
        nfe=setting.nfe,
        cfg=setting.cfg,
        cfg_channels=setting.cfg_channels,
        cfg_interval=setting.cfg_interval,
        shift=setting.shift,
        tolerance=setting.tolerance,
        labels=setting.labels_fact(classes),
        seed=setting.seed,
        num_samples=setting.num,
    )


def setting_name(sampling: Sampling) -> str:
    """A directory name for a sample set; one name a setting."""
    effort = sampling.steps if sampling.tolerance is None else f"-tol{sampling.tolerance:g}"
    parts = [
        f"step{sampling.step}",
        sampling.weights,
        f"{sampling.sampler}{effort}",
        f"cfg{sampling.cfg:g}",
    ]
    if sampling.cfg_interval != EVERYWHERE:
        parts.append("from{:g}to{:g}".format(*sampling.cfg_interval))
    if sampling.shift != 1:
        parts.append(f"shift{sampling.shift:g}")
    if sampling.cfg_channels is not None:
        parts.append(f"ch{sampling.cfg_channels}")
    if sampling.labels == UNIFORM:
        parts.append(UNIFORM)
    elif sampling.labels != CYCLIC:
        parts.append("class" + hashlib.sha256(sampling.labels.encode()).hexdigest()[:6])
    return "-".join([*parts, f"seed{sampling.seed}", f"n{sampling.num_samples}"])


def equivalent_command(sampling: Sampling, defaults: SamplerConfig) -> str:
    """The command that makes these samples anywhere; WORKDIR stands for the run, whose recipe has
    the defaults.
    """
    words: list[Any] = ["flowtrain", "sample", "WORKDIR", "OUT", "--num", sampling.num_samples]
    words += (
        ["--steps", sampling.steps]
        if sampling.tolerance is None
        else ["--tolerance", f"{sampling.tolerance:g}"]
    )
    words += ["--solver", sampling.sampler, "--cfg", f"{sampling.cfg:g}", "--seed", sampling.seed]
    words += ["--step", sampling.step, "--weights", sampling.weights]
    if sampling.cfg_channels is not None:
        words += ["--cfg-channels", sampling.cfg_channels]
    if sampling.cfg_interval != defaults.cfg_interval:
        words += ["--cfg-interval", "{:g},{:g}".format(*sampling.cfg_interval)]
    if sampling.shift != defaults.shift and sampling.tolerance is None:
        words += ["--shift", f"{sampling.shift:g}"]
    if sampling.labels.startswith("frequencies "):
        words += ["--labels", "REFERENCE"]
    elif sampling.labels == UNIFORM:
        words += ["--labels", UNIFORM]
    elif sampling.labels != CYCLIC:
        words += ["--class", sampling.labels]
    return shlex.join(str(word) for word in words)
