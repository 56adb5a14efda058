"""The tables of a recipe: every number of a training run, validated.

What a person types wins: a model size fills in only the fields that were left out.
"""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, Self, get_args

from pydantic import Field, field_serializer, field_validator, model_validator

from schemas.errors import UserError
from schemas.growing import Growing
from schemas.sampler import SamplerConfig
from schemas.solvers import ASK_AT_DATA, MOST_STEPS, Solver

Flip = Literal["auto", "always", "never"]
_FLIP_ON_DISK: dict[bool, Flip] = {True: "auto", False: "never"}


class DiTSize(NamedTuple):
    """Depth, width and attention heads of a named size (Peebles & Xie 2023, table 1)."""

    depth: int
    width: int
    heads: int


SIZES: dict[str, DiTSize] = {
    "debug": DiTSize(2, 32, 2),
    "S": DiTSize(12, 384, 6),
    "B": DiTSize(12, 768, 12),
    "L": DiTSize(24, 1024, 16),
    "XL": DiTSize(28, 1152, 16),
}

# that do not depend on train.steps: such a run can be made longer
ENDLESS_SCHEDULES = ("constant", "rsqrt")
SCAN_FROM_DEPTH = 24  # L and XL
# Fields that a repeated command may change and still continue the same run: as long as no record is
# damaged and no step goes wrong, the result is the same up to rounding.
UNLEARNED = ("latent", "classes", "remat")  # of the model
BOOKKEEPING = (
    *("log_every", "validate_every", "validation_records"),
    *("checkpoint_every", "keep", "keep_every", "keep_best"),
    *("on_corrupt", "max_bad_steps", "max_rollbacks", "accumulate"),
)

# By kind of objective: what it may predict, and what the other tables take from it unless they are
# told otherwise.
OUTPUTS: dict[str, tuple[str, ...]] = {
    "flow": ("velocity", "negative_velocity", "data"),
    "diffusion": ("epsilon", "data"),
}
SOLVERS: dict[str, tuple[str, ...]] = {"flow": get_args(Solver), "diffusion": ("ddim", "ddpm")}
DEFAULTS: dict[str, dict[str, dict[str, Any]]] = {
    "diffusion": {
        # Time is the timestep of DDPM, 0 ... diffusion_steps - 1.
        "model": {
            "output": "epsilon",
            "time_direction": "to_noise",
            "time_scale": 1000.0,  # diffusion_steps, where that is given
            "time_offset": -1.0,
            "time_integer": True,
        },
        "objective": {"time": "uniform", "uniform_share": 0.0},
        "sampler": {"solver": "ddim"},
    }
}


class ModelConfig(Growing):
    """The Diffusion Transformer: a `size`, or depth, width and heads, or a size with changes.

    The conventions of its input time and of its output are data, so that weights of other systems
    fit:

    - the network's time is `time_scale * t + time_offset` with `time_direction` "to_data" (t = 1 is
      data), and `time_scale * (1 - t) + time_offset` with "to_noise"; rounded to a whole number if
      `time_integer`;
    - it enters as cos and sin of time * 10000^(-k / n), n = half the frequencies ("half": DiT, SiT)
      or one less ("half_minus_one": diffusers);
    - `output` is what the network is trained to give: the path's velocity (to data), its negative,
      the noise (epsilon), or the data.
    """

    size: Literal["debug", "S", "B", "L", "XL"] | None = None
    depth: int = Field(ge=1, le=1000)
    width: int = Field(ge=2, le=65_536)
    heads: int = Field(ge=1)
    patch: int = Field(default=2, ge=1)
    mlp_ratio: float = Field(default=4.0, gt=0, le=64)
    # (h, w, c) that the recipe is made for; None: as the dataset has them
    latent: tuple[int, int, int] | None = None
    # that the recipe is made for; None: as the dataset has them
    classes: int | None = Field(default=None, ge=1)
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the computation; parameters are float32
    qk_norm: bool = False  # RMS norm of queries and keys, with a learned scale
    # One compiled block over stacked parameters; default: from depth 24, where compiling is long.
    scan: bool = Field(default_factory=lambda data: data.get("depth", 0) >= SCAN_FROM_DEPTH)
    # compute activations of a block again in the backward pass, instead of keeping them
    remat: bool = False
    time_conditioning: bool = True  # False: the network is not told t
    time_direction: Literal["to_data", "to_noise"] = "to_data"
    time_scale: float = Field(default=1000.0, gt=0)
    time_offset: float = 0.0
    time_integer: bool = False
    time_frequencies: Literal["half", "half_minus_one"] = "half"
    output: Literal["velocity", "negative_velocity", "epsilon", "data"] = "velocity"

    @model_validator(mode="before")
    @classmethod
    def _fill_from_size(cls, values: Any) -> Any:
        size = values.get("size") if isinstance(values, Mapping) else None
        return (
            {**SIZES[size]._asdict(), **values}
            if isinstance(size, str) and size in SIZES
            else values
        )

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not divisible by heads {self.heads}")
        if self.width % 4:
            raise ValueError(f"width {self.width} must be divisible by 4 for 2-D sin-cos positions")
        return self


class ObjectiveConfig(Growing):
    """What is learned.

    "flow": the linear path x_t = (1 - t) noise + t data. "diffusion": the variance-preserving noise
    of DDPM, `diffusion_steps` levels with linear betas, t = 1 - k / diffusion_steps for k = 1
    (almost data) to all (noise).

    A logit-normal t hardly ever lies near the data: of N(0, 1) 1.4% of the draws are above 0.9,
    which many-step samples pass through. `uniform_share` draws that share of the records' t
    uniformly instead.
    """

    added = ("uniform_share",)

    kind: Literal["flow", "diffusion"] = "flow"
    time: Literal["logit_normal", "uniform"] = "logit_normal"  # diffusion: the levels, uniformly
    logit_mean: float = 0.0
    logit_std: float = Field(default=1.0, gt=0)
    # of logit_normal's draws, that are uniform instead
    uniform_share: float = Field(default=0.0, ge=0, le=1)
    beta_start: float = Field(default=1e-4, gt=0, lt=1)
    beta_end: float = Field(default=0.02, gt=0, lt=1)
    diffusion_steps: int = Field(default=1000, ge=2, le=10_000)
    label_drop: float = Field(default=0.1, ge=0, lt=1)


class OptimizerConfig(Growing):
    """Adam (AdamW with `weight_decay`), optionally with linear warm-up and clipping."""

    learning_rate: float = Field(default=1e-4, gt=0)
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.99, ge=0, lt=1)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    warmup_steps: int = Field(default=0, ge=0)
    schedule: Literal["constant", "cosine", "linear", "rsqrt"] = "constant"
    # rsqrt: the rate is flat to here, then falls as 1 / sqrt(step)
    rsqrt_steps: int = Field(default=70_000, ge=1)
    clip_norm: float | None = Field(default=None, gt=0)


class TrainConfig(Growing):
    """Length, batch, averages, data and bookkeeping of a run."""

    steps: int = Field(ge=1, lt=2**31)  # steps are counted in 32 bits
    batch_size: int = Field(ge=1, le=1 << 24)
    # parts in which a batch goes through the network, one after another
    accumulate: int = Field(default=1, ge=1)
    seed: int = Field(default=0, ge=0, lt=2**32)  # JAX keys are made of 32 bits
    ema_decay: float = Field(default=0.9999, ge=0, lt=1)
    ema_extra: tuple[float, ...] = ()  # decays of further averages
    # relative widths (sigma_rel) of power-function averages, for post-hoc EMA
    ema_power: tuple[float, ...] = ()
    # steps between the snapshots that post-hoc EMA needs
    ema_snapshot_every: int = Field(default=5000, ge=1)
    normalization: Literal["vae", "channel"] = "vae"
    # Choose between a record and its mirror image. "auto": where the dataset has mirrored
    # encodings. "always": pixels that have none are mirrored while they are read; latents are
    # refused. "never". In a recipe and on the command line true is "always" and false "never"; in
    # run.json true is "auto" (below).
    flip: Flip = "auto"
    holdout: int = Field(default=0, ge=0)  # records kept from training, for the validation loss
    # train on so many records only, to see whether it can learn
    overfit: int | None = Field(default=None, ge=1)
    # a damaged record: end with its name, or take the next one
    on_corrupt: Literal["stop", "skip"] = "stop"
    max_bad_steps: int = Field(default=10, ge=1)  # non-finite steps in a row before rolling back
    max_rollbacks: int = Field(default=3, ge=0)
    log_every: int = Field(default=50, ge=1)
    validate_every: int = Field(default=1000, ge=1)  # when there are records to validate on
    validation_records: int = Field(default=1024, ge=1)  # at most
    checkpoint_every: int = Field(default=5000, ge=1)
    keep: int = Field(default=2, ge=1)  # the last checkpoints,
    # those of every so many steps, a multiple of checkpoint_every,
    keep_every: int | None = Field(default=None, ge=1)
    keep_best: int = Field(default=0, ge=0)  # and those of the lowest validation loss

    # Runs of earlier commits say true for what is now "auto"; run.json keeps that word for it, so
    # that they give the same bytes again.
    @field_validator("flip", mode="before")
    @classmethod
    def _read_flip(cls, value: object) -> object:
        return _FLIP_ON_DISK.get(value, value) if isinstance(value, bool) else value

    @field_serializer("flip", when_used="json")
    def _write_flip(self, value: Flip) -> bool | Flip:
        on_disk: dict[Flip, bool] = {word: said for said, word in _FLIP_ON_DISK.items()}
        return on_disk.get(value, value)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"batch_size {self.batch_size} is not divisible by accumulate {self.accumulate}"
            )
        if self.keep_every is not None and self.keep_every % self.checkpoint_every:
            nearest = max(1, round(self.keep_every / self.checkpoint_every)) * self.checkpoint_every
            raise ValueError(
                f"keep_every {self.keep_every} is not divisible by checkpoint_every "
                f"{self.checkpoint_every}, so those checkpoints are never made; try --set "
                f"train.keep_every={nearest}"
            )
        if not all(0 <= decay < 1 for decay in self.ema_extra):
            raise ValueError(f"ema_extra {list(self.ema_extra)}: each decay must be in [0, 1)")
        if not all(0 < width < 0.28 for width in self.ema_power):  # gamma >= 0 ends at 1 / sqrt(12)
            raise ValueError(
                f"ema_power {list(self.ema_power)}: each relative width must be in (0, 0.28)"
            )
        for name, values in (("ema_extra", self.ema_extra), ("ema_power", self.ema_power)):
            if len(set(values)) < len(values):  # an average is named by its value
                raise ValueError(f"{name} {list(values)}: give each value once")
        return self


class PreviewConfig(Growing):
    """What a run draws of itself while it trains."""

    every: int = Field(default=0, ge=0)  # steps; 0: never
    steps: tuple[int, ...] = (1, 4, 32)
    cfg: tuple[float, ...] = (1.0, 4.0)
    classes: int = Field(default=10, ge=1)  # rows of a grid, at most
    columns: int = Field(default=8, ge=1)
    noise_levels: int = Field(default=8, ge=1)  # of the one-step reconstructions
    distance_samples: int = Field(default=0, ge=0)  # for a distance to --reference; 0: none
    protocol: str = "embedded"

    @model_validator(mode="after")
    def _positive(self) -> Self:
        if not self.steps or not self.cfg or min(self.steps) < 1 or min(self.cfg) < 0:
            raise ValueError(
                "steps and cfg must each hold a number, steps of at least 1 and cfg of at least 0"
            )
        if max(self.steps) > MOST_STEPS:
            raise ValueError(f"steps {max(self.steps)}: at most {MOST_STEPS}")
        return self


class Recipe(Growing):
    """A whole run."""

    model: ModelConfig
    objective: ObjectiveConfig = ObjectiveConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig
    sampler: SamplerConfig = SamplerConfig()
    preview: PreviewConfig = PreviewConfig()

    @model_validator(mode="before")
    @classmethod
    def _fill_from_objective(cls, values: Any) -> Any:
        objective = values.get("objective") if isinstance(values, Mapping) else None
        if not isinstance(objective, Mapping) or not isinstance(objective.get("kind"), str):
            return values
        levels = objective.get("diffusion_steps")
        scale = {"time_scale": levels} if isinstance(levels, int) else {}
        for table, content in DEFAULTS.get(objective["kind"], {}).items():
            typed = values.get(table, {})
            if isinstance(typed, Mapping):
                values = {
                    **values,
                    table: {**content, **(scale if table == "model" else {}), **typed},
                }
        return values

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        kind = self.objective.kind
        if self.model.output not in OUTPUTS[kind]:
            raise ValueError(_does_not_go(f"model.output {self.model.output}", kind, OUTPUTS))
        if self.sampler.solver not in SOLVERS[kind]:
            raise ValueError(_does_not_go(f"sampler.solver {self.sampler.solver}", kind, SOLVERS))
        _check_end("sampler.solver", self.sampler.solver, self.model.output)
        if kind == "diffusion" and self.sampler.shift != 1:
            raise ValueError("sampler.shift is for objective.kind flow; leave it at 1")
        if self.objective.uniform_share and self.objective.time == "uniform":
            raise ValueError(
                "objective.uniform_share is for objective.time logit_normal; leave it at 0"
            )
        if kind == "diffusion" and self.objective.time != "uniform":
            raise ValueError("objective.time must be uniform for objective.kind diffusion")
        drawn = {"sampler.steps": self.sampler.steps}
        if self.preview.every:
            drawn["preview.steps"] = max(self.preview.steps)
        for name, steps in drawn.items():
            if steps > self.most_steps:
                raise ValueError(
                    f"{name} {steps}: objective.diffusion_steps has only {self.most_steps} levels; "
                    "lower it"
                )
        return self

    @property
    def most_steps(self) -> int:
        """The most sampling steps: one a noise level of a diffusion."""
        return self.objective.diffusion_steps if self.objective.kind == "diffusion" else MOST_STEPS


def _does_not_go(what: str, kind: str, allowed: Mapping[str, tuple[str, ...]]) -> str:
    return f"{what} does not go with objective.kind {kind}; use {' or '.join(allowed[kind])}"


def _check_end(name: str, solver: str, output: str) -> None:
    if solver in ASK_AT_DATA and output == "data":
        raise ValueError(
            f"{name} {solver} asks for the velocity at t = 1, which a prediction of the data does "
            "not give"
        )


def choose_solver(recipe: Recipe, asked: str | None) -> str:
    """The solver that a command asked for, or the recipe's.

    Raises:
        UserError: it does not go with the recipe's objective, or with what the network predicts.
    """
    kind, solver = recipe.objective.kind, asked or recipe.sampler.solver
    if solver not in SOLVERS[kind]:
        raise UserError(_does_not_go(f"--solver {solver}", kind, SOLVERS))
    try:
        _check_end("--solver", solver, recipe.model.output)
    except ValueError as error:
        raise UserError(f"{error}; take midpoint") from None
    return solver
