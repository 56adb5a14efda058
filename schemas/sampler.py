"""How samples are drawn: the sampler's settings, whole, and a recipe's defaults of them.

Needs no JAX, so that a setting can be named, counted and written as a command line anywhere.
"""

from dataclasses import dataclass
from typing import Any, Self

from pydantic import Field, model_validator

from schemas.growing import Growing
from schemas.solvers import ADAPTIVE, EVALUATIONS, EVERYWHERE, MOST_STEPS, Solver

TOLERANCE = 1e-5  # of a solver that chooses its steps


@dataclass(frozen=True)
class SamplerSettings:
    """Everything about a sampler that its samples depend on, passed whole to where it is needed.

    A further setting touches these source files, and no other:

    1. this one: the field, its part of `name`, its option in `words` or `further_words`, its part
       of `remarks`; a field of `SamplerConfig` too where recipes shall say it;
    2. `flowtrain/flow/sampler.py`: its effect;
    3. `evaluation/results.py`: its field in `Sampling`, which is what results and sample sets keep
       (with `added`, so that what was written before keeps its bytes);
    4. `evaluation/options.py`: its option on the command line.

    Attributes:
        solver: one that goes with the run's objective (`schemas.config.choose_solver`).
        steps: of the solver, at least 1; always 0 where the solver chooses its own, `dopri5`.
        cfg: guidance weight; 1 is none, and then the unconditional half is not computed.
        cfg_channels: guide only the first channels, and None for all (DiT and SiT use 3).
        cfg_interval: the times t between which there is guidance, both included (Kynkäänniemi et
            al. 2024, arXiv:2404.07724, who count by noise level).
        shift: of the time steps towards noise (`flowtrain.flow.solvers.shifted`); always 1 where
            the solver chooses its own.
        tolerance: relative and absolute, of a solver that chooses its steps; None: 1e-5. Always
            None where the solver does not.
        seed: of the initial noise, of classes drawn at random, and of what a stochastic solver
            adds; in [0, 2^32).

    Raises:
        ValueError: a tolerance for a solver that takes steps.
    """

    solver: str
    steps: int
    cfg: float
    cfg_channels: int | None = None
    cfg_interval: tuple[float, float] = EVERYWHERE
    shift: float = 1.0
    tolerance: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.solver == ADAPTIVE:
            # One form for settings that draw the same samples: they are compared and named.
            object.__setattr__(self, "steps", 0)
            object.__setattr__(self, "shift", 1.0)
            object.__setattr__(self, "tolerance", self.tolerance or TOLERANCE)
        elif self.tolerance is not None:
            raise ValueError(f"a tolerance is for {ADAPTIVE}; {self.solver} takes steps")

    @property
    def nfe(self) -> int | None:
        """Network evaluations a sample; guidance doubles them. None: as many as each needs."""
        if self.solver == ADAPTIVE:
            return None
        passes = 1 if self.cfg == 1 else 2
        return self.steps * EVALUATIONS[self.solver] * passes

    @property
    def effort(self) -> str:
        """How far the solver goes, in words."""
        if self.solver == ADAPTIVE:
            return f"tolerance {self.tolerance:g}"
        return f"{self.steps} steps"

    @property
    def name(self) -> str:
        """The part of a sample set's name that tells samplers apart, but for their seed."""
        effort = f"{self.steps}" if self.tolerance is None else f"-tol{self.tolerance:g}"
        parts = [f"{self.solver}{effort}", f"cfg{self.cfg:g}"]
        if self.cfg_interval != EVERYWHERE:
            parts.append("from{:g}to{:g}".format(*self.cfg_interval))
        if self.shift != 1:
            parts.append(f"shift{self.shift:g}")
        if self.cfg_channels is not None:
            parts.append(f"ch{self.cfg_channels}")
        return "-".join(parts)

    def words(self) -> dict[str, str]:
        """Values by option of `sample` and `eval`: those that every command line tells."""
        if self.tolerance is None:
            effort = {"--steps": f"{self.steps}"}
        else:
            effort = {"--tolerance": f"{self.tolerance:g}"}
        return {
            **effort,
            "--solver": self.solver,
            "--cfg": f"{self.cfg:g}",
            "--seed": f"{self.seed}",
        }

    def further_words(self, defaults: "SamplerConfig") -> dict[str, str]:
        """Values of the other options, told where a run whose recipe has the defaults needs them.

        Together with `words` they ask for these very settings.
        """
        words: dict[str, str] = {}
        if self.cfg_channels is not None:
            words["--cfg-channels"] = f"{self.cfg_channels}"
        if self.cfg_interval != defaults.cfg_interval:
            words["--cfg-interval"] = "{:g},{:g}".format(*self.cfg_interval)
        if self.shift != defaults.shift and self.tolerance is None:
            words["--shift"] = f"{self.shift:g}"
        return words

    @property
    def remarks(self) -> list[str]:
        """What is not as usual, each in words, besides solver, steps, guidance weight and seed."""
        remarks: list[str] = []
        if self.tolerance is not None:
            remarks.append(f"tolerance {self.tolerance:g}")
        if self.shift != 1:
            remarks.append(f"shift {self.shift:g}")
        if self.cfg_channels is not None:
            remarks.append(f"guidance on the first {self.cfg_channels} channels")
        if self.cfg_interval != EVERYWHERE:
            remarks.append("guidance from t = {:g} to {:g}".format(*self.cfg_interval))
        return remarks


class SamplerConfig(Growing):
    """A recipe's defaults of `sample` and of previews; fields as in `SamplerSettings`."""

    solver: Solver = "euler"  # default: ddim for diffusion
    steps: int = Field(default=50, ge=1, le=MOST_STEPS)  # dopri5 chooses its own
    cfg: float = Field(default=4.0, ge=0)
    cfg_channels: int | None = Field(default=None, ge=1)  # None: guidance on all channels
    # times t between which there is guidance, both included
    cfg_interval: tuple[float, float] = EVERYWHERE
    shift: float = Field(default=1.0, gt=0)  # of the time steps, towards noise; of a flow only

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not 0 <= self.cfg_interval[0] <= self.cfg_interval[1] <= 1:
            raise ValueError(
                f"cfg_interval {list(self.cfg_interval)}: two times, 0 <= first <= second <= 1"
            )
        return self

    def settings(self, **changes: Any) -> SamplerSettings:
        """The settings as the recipe has them, but for `changes`, named as their fields."""
        defaults = {name: getattr(self, name) for name in type(self).model_fields}
        return SamplerSettings(**{**defaults, **changes})
