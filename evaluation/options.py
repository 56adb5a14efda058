"""What `sample`, `eval` and `stats` are asked for, typed, and the settings of samples that follow.

What was left out is None, or empty where there may be several, and comes from the run's recipe.
"""

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from evaluation.class_rules import chosen_class, class_rule
from evaluation.option_types import ABOVE_0, SEED, Numbers
from pipelines.option_types import BATCH, COUNT
from pipelines.preprocess.thresholds import MAX_BAD_FRACTION
from schemas.config import SOLVERS, choose_solver
from schemas.rules import Rule, check
from schemas.solvers import ADAPTIVE

if TYPE_CHECKING:
    from evaluation.draw.setting import Setting
    from schemas.run import Run

_F = TypeVar("_F", bound=Callable[..., Any])

# What --sweep takes, by its name with dashes for the field of `EvalOptions`, and how a value is
# read.
SWEPT: Mapping[str, Callable[[str], Any]] = {
    "step": int,
    "weights": str,
    "solver": str,
    "steps": int,
    "cfg": float,
    "shift": float,
    "tolerance": float,
    "seed": int,
    "num-samples": int,
    "protocol": str,
}


@dataclass(frozen=True, kw_only=True)
class DrawOptions:
    """How samples are drawn and from which weights; `sample` and `eval` share it.

    Attributes:
        steps: numbers of steps, each drawn with each of `cfg`.
        cfg: guidance weights.
        solver: by name.
        cfg_channels: how many channels are guided.
        cfg_interval: two times, between which there is guidance.
        shift: of the time steps, towards noise.
        tolerance: of a solver that chooses its steps.
        seed: in [0, 2^32).
        class_name: the only class, by its name or number.
        labels: the rule of the classes, or a statistics file whose counts to follow.
        step: of the checkpoint; None is the newest.
        weights: as for `load_for_sampling`.
        batch_size: samples at once.
    """

    steps: tuple[int, ...] = ()
    cfg: tuple[float, ...] = ()
    solver: str | None = None
    cfg_channels: int | None = None
    cfg_interval: tuple[float, ...] | None = None
    shift: float | None = None
    tolerance: float | None = None
    seed: int = 0
    class_name: str | None = None
    labels: str = "cyclic"
    step: int | None = None
    weights: str = "ema"
    batch_size: int = 256


@dataclass(frozen=True, kw_only=True)
class ExtractorOptions:
    """Where an extractor's weights are, and of other weights than the published their SHA-256."""

    extractor_weights: Path | None = None
    extractor_sha256: str | None = None


@dataclass(frozen=True, kw_only=True)
class SampleOptions(DrawOptions):
    """`flowtrain sample`."""

    workdir: Path
    out: Path
    num: int | None
    dry_run: bool


@dataclass(frozen=True, kw_only=True)
class EvalOptions(DrawOptions, ExtractorOptions):
    """`flowtrain eval`; `resolution` and `crop` are for a folder of images."""

    workdir: Path
    reference: Path
    num_samples: int | None = None
    protocol: str = "embedded"
    metrics: tuple[str, ...] = ()
    neighbours: int | None = None
    sweeps: tuple[str, ...] = ()
    resolution: int | None = None
    crop: str = "adm"
    max_bad_fraction: float = MAX_BAD_FRACTION
    as_json: bool = False
    dry_run: bool = False
    beam_args: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class StatsOptions(ExtractorOptions):
    """`flowtrain stats`."""

    source: str
    out: Path
    split: str | None
    resolution: int | None
    crop: str
    protocol: str
    num: int | None
    features: bool
    max_bad_fraction: float
    as_json: bool
    dry_run: bool
    beam_args: tuple[str, ...]


# In the order of --help.
_SAMPLER: tuple[Callable[..., Any], ...] = (
    click.option(
        "--solver",
        type=click.Choice(list(dict.fromkeys(itertools.chain(*SOLVERS.values())))),
        help="One that goes with the objective.  [default: recipe]",
    ),
    click.option(
        "--cfg-channels", type=COUNT, help="Guide only the first channels.  [default: recipe]"
    ),
    click.option(
        "--cfg-interval",
        type=Numbers(float, 0, 2),
        help="Guidance between two times only, as in 0.1,0.8.",
    ),
    click.option(
        "--shift", type=ABOVE_0, help="Of the time steps, towards noise.  [default: recipe]"
    ),
    click.option(
        "--tolerance", type=ABOVE_0, help="Of dopri5, relative and absolute.  [default: 1e-5]"
    ),
)
_CLASSES: tuple[Callable[..., Any], ...] = (
    click.option(
        "--class", "class_name", metavar="NAME", help="Only this class.  [default: by --labels]"
    ),
    click.option(
        "--labels",
        metavar="RULE",
        default=DrawOptions.labels,
        show_default=True,
        help="cyclic (sample i has class i modulo classes), uniform, or statistics (.npz) whose "
        "class counts to follow.",
    ),
)
_WEIGHTS: tuple[Callable[..., Any], ...] = (
    click.option("--seed", type=SEED, default=DrawOptions.seed, show_default=True),
    click.option("--step", type=click.IntRange(min=0), help="Checkpoint step.  [default: newest]"),
    click.option(
        "--weights",
        metavar="NAME",
        default=DrawOptions.weights,
        show_default=True,
        help="ema, or params (not averaged), or another average: ema0.999, power0.05, posthoc0.13.",
    ),
    click.option(
        "--batch-size",
        type=BATCH,
        default=DrawOptions.batch_size,
        show_default=True,
        help="Samples at once.",
    ),
)


def drawing_options(command: _F) -> _F:
    """The options of `DrawOptions` but for `steps` and `cfg`, of which `eval` takes several."""
    for option in reversed((*_SAMPLER, *_CLASSES, *_WEIGHTS)):
        command = option(command)
    return command


@dataclass(frozen=True)
class _Drawing:
    """Options beside the run they are for, with the solver that it will be."""

    options: DrawOptions
    run: "Run"
    solver: str

    @property
    def channels(self) -> int:
        """How many channels are guided; 0 for all."""
        return self.options.cfg_channels or self.run.recipe.sampler.cfg_channels or 0

    @property
    def model_channels(self) -> int:
        return self.run.latent_shape[2]

    @property
    def most(self) -> int:
        """The largest number of steps that was typed."""
        return max(self.options.steps, default=1)

    @property
    def adaptive(self) -> bool:
        return self.solver == ADAPTIVE

    @property
    def shifts(self) -> bool:
        return self.options.shift not in (None, 1.0)

    @property
    def finite(self) -> bool:
        numbers = (*self.options.cfg, self.options.shift, self.options.tolerance)
        return all(math.isfinite(number) for number in numbers if number is not None)

    @property
    def ordered(self) -> bool:
        begin, end = self.options.cfg_interval or (0, 1)
        return 0 <= begin <= end <= 1


_RULES: tuple[Rule[_Drawing], ...] = (
    Rule(
        lambda drawing: drawing.channels > drawing.model_channels,
        lambda drawing: (
            f"--cfg-channels {drawing.channels}: the model has {drawing.model_channels} channels"
        ),
    ),
    Rule(
        lambda drawing: drawing.most > drawing.run.recipe.most_steps,
        lambda drawing: (
            f"--steps {drawing.most}: the run has only {drawing.run.recipe.most_steps} noise "
            "levels; take fewer"
        ),
    ),
    Rule(
        lambda drawing: not drawing.finite,
        "--cfg, --shift and --tolerance: give finite numbers",
    ),
    Rule(
        lambda drawing: not drawing.ordered,
        "--cfg-interval: two times, 0 <= first <= second <= 1, as in 0.1,0.8",
    ),
    Rule(
        lambda drawing: drawing.shifts and drawing.run.recipe.objective.kind == "diffusion",
        "--shift is for a flow; leave it out",
    ),
    Rule(
        lambda drawing: drawing.adaptive and bool(drawing.options.steps),
        f"--solver {ADAPTIVE} chooses its own steps; give --tolerance rather than --steps",
    ),
    Rule(
        lambda drawing: drawing.adaptive and drawing.shifts,
        f"--solver {ADAPTIVE} chooses its own steps; leave --shift out",
    ),
    Rule(
        lambda drawing: not drawing.adaptive and drawing.options.tolerance is not None,
        lambda drawing: f"--tolerance is for --solver {ADAPTIVE}; {drawing.solver} takes --steps",
    ),
)


def settings_of(run: "Run", options: DrawOptions, num: int | None) -> list["Setting"]:
    """Every pair of steps and guidance; what was left out comes from the recipe.

    Args:
        run: to draw from.
        options: what was typed.
        num: of samples; None for 10 a class, at most 200.

    Raises:
        UserError: the run cannot be sampled so.
    """
    from evaluation.draw.setting import Setting

    defaults = run.recipe.sampler
    solver = choose_solver(run.recipe, options.solver)
    check(_RULES, _Drawing(options, run, solver))
    begin, end = options.cfg_interval or defaults.cfg_interval
    label = chosen_class(options.class_name, run.classes)
    rule, frequencies = class_rule(options.labels, label, run.classes, run.empty_classes)
    count = num or 10 * (min(len(run.sampled_classes), 20) if label is None else 1)
    samplers = [
        defaults.settings(
            solver=solver,
            steps=steps,
            cfg=cfg,
            cfg_channels=options.cfg_channels or defaults.cfg_channels,
            cfg_interval=(begin, end),
            shift=options.shift or defaults.shift,
            tolerance=options.tolerance,
            seed=options.seed,
        )
        for cfg in options.cfg or (defaults.cfg,)
        for steps in options.steps or (defaults.steps,)
    ]
    return [Setting(count, sampler, label, rule, frequencies) for sampler in samplers]
