"""From what was typed to settings of samples: defaults of the recipe, classes, and sweeps over
values.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from schemas.config import choose_solver
from schemas.errors import UserError, nearest
from schemas.run import Run
from schemas.solvers import ADAPTIVE

if TYPE_CHECKING:
    from evaluation.draw.setting import Setting

# What --sweep takes, and how a value is read.
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
_LISTS = ("steps", "cfg")  # options that hold several values anyway


def swept(options: Mapping[str, Any], sweeps: Sequence[str]) -> list[dict[str, Any]]:
    """The options once for every combination of swept values, the first sweep varying slowest.

    Raises:
        UserError: a sweep that is not KEY=VALUE,VALUE, of an unknown key, twice of one, or of
            another kind of value.
    """
    values: dict[str, list[Any]] = {}
    for sweep in sweeps:
        key, separator, text = sweep.partition("=")
        if not separator or key not in SWEPT:
            raise UserError(
                f"--sweep {sweep}: write KEY=VALUE,VALUE with a key of {', '.join(SWEPT)}"
            )
        if key in values:
            raise UserError(f"--sweep {key}: is given twice; put all values into one")
        try:
            found = [SWEPT[key](part.strip()) for part in text.split(",")]
        except ValueError:
            raise UserError(
                f"--sweep {sweep}: {text!r} is not numbers separated by commas"
            ) from None
        if key in ("steps", "num-samples", "shift", "tolerance") and min(found) <= 0:
            raise UserError(f"--sweep {sweep}: each must be above 0")
        if key in ("step", "seed", "cfg") and min(found) < 0:
            raise UserError(f"--sweep {sweep}: none may be below 0")
        if (key == "seed" and max(found) >= 2**32) or (key == "num-samples" and min(found) < 2):
            raise UserError(
                f"--sweep {sweep}: seeds are below 2^32, and a distance needs 2 samples"
            )
        values[key] = list(dict.fromkeys(found))
    lists = {key: values.pop(key) for key in _LISTS if key in values}
    keys = [key.replace("-", "_") for key in values]
    return [
        {**options, **lists, **dict(zip(keys, chosen, strict=True))}
        for chosen in itertools.product(*values.values())
    ]


def settings_of(run: Run, options: Mapping[str, Any], num: int | None) -> list["Setting"]:
    """Every pair of steps and guidance; what was left out comes from the recipe.

    Args:
        run: to draw from.
        options: as `sample` and `eval` have them; `steps` and `cfg` are lists or None.
        num: of samples; None for 10 a class, at most 200.

    Raises:
        UserError: the run cannot be sampled so.
    """
    from evaluation.draw.setting import Setting

    defaults = run.recipe.sampler
    solver = choose_solver(run.recipe, options["solver"])
    steps, guidances = options["steps"] or [None], options["cfg"] or [None]
    _check(run, options, solver)
    label = _label(options["class_name"], run.classes)
    rule, frequencies = _rule(options["labels"], label, run.classes)
    changes = {
        "solver": solver,
        "cfg_channels": options["cfg_channels"] or defaults.cfg_channels,
        "cfg_interval": tuple(options["cfg_interval"] or defaults.cfg_interval),
        "shift": options["shift"] or (1.0 if solver == ADAPTIVE else defaults.shift),
        "tolerance": options["tolerance"],
        "seed": options["seed"],
    }
    count = num or 10 * (min(len(run.classes), 20) if label is None else 1)
    return [
        Setting(
            count,
            defaults.settings(
                **changes,
                cfg=defaults.cfg if cfg is None else cfg,
                steps=each or defaults.steps,
            ),
            label,
            rule,
            frequencies,
        )
        for cfg in guidances
        for each in steps
    ]


def _check(run: Run, options: Mapping[str, Any], solver: str) -> None:
    """Raises `UserError` where options do not go with the run or with each other."""
    most = max((steps for steps in options["steps"] or () if steps), default=1)
    channels = options["cfg_channels"] or run.recipe.sampler.cfg_channels
    if channels is not None and channels > run.latent_shape[2]:
        raise UserError(f"--cfg-channels {channels}: the model has {run.latent_shape[2]} channels")
    if most > run.recipe.most_steps:
        raise UserError(
            f"--steps {most}: the run has only {run.recipe.most_steps} noise levels; take fewer"
        )
    numbers = (*(options["cfg"] or ()), options["shift"], options["tolerance"])
    if not all(math.isfinite(number) for number in numbers if number is not None):
        raise UserError("--cfg, --shift and --tolerance: give finite numbers")
    interval = options["cfg_interval"]
    if interval and not 0 <= interval[0] <= interval[1] <= 1:
        raise UserError("--cfg-interval: two times, 0 <= first <= second <= 1, as in 0.1,0.8")
    if run.recipe.objective.kind == "diffusion" and options["shift"] not in (None, 1.0):
        raise UserError("--shift is for a flow; leave it out")
    if solver == ADAPTIVE:
        if any(options["steps"] or ()):
            raise UserError(
                f"--solver {ADAPTIVE} chooses its own steps; give --tolerance rather than --steps"
            )
        if options["shift"] not in (None, 1.0):
            raise UserError(f"--solver {ADAPTIVE} chooses its own steps; leave --shift out")
    elif options["tolerance"] is not None:
        raise UserError(f"--tolerance is for --solver {ADAPTIVE}; {solver} takes --steps")


def _rule(
    text: str, label: int | None, classes: tuple[str, ...]
) -> tuple[str, tuple[float, ...] | None]:
    """The rule of the classes and, of statistics, how many images there are of each.

    Raises:
        UserError: neither a rule nor statistics with counts of these classes; or a single class is
            asked for too.
    """
    from evaluation.draw.setting import CYCLIC, UNIFORM

    if text != CYCLIC and label is not None:
        raise UserError("--labels and --class: give one of them")
    if text in (CYCLIC, UNIFORM):
        return text, None
    from schemas.statistics import read_statistics

    if not Path(text).is_file():
        raise UserError(f"--labels {text}: neither {CYCLIC}, {UNIFORM} nor a statistics file")
    statistics = read_statistics(Path(text))
    counts, known = (
        statistics.labels,
        dict(zip(statistics.classes, range(len(statistics.classes)), strict=True)),
    )
    if counts is None or len(counts) != len(known) or counts.sum() == 0:
        raise UserError(
            f"--labels {text}: holds no counts of classes; measure it with `flowtrain stats`"
        )
    if {*known} != {*classes}:
        other = min({*classes} ^ {*known})
        raise UserError(
            f"--labels {text}: its classes are not those of the run ({other!r} is in one of them "
            "only)"
        )
    return "frequencies", tuple(float(counts[known[name]]) for name in classes)


def _label(name: str | None, classes: tuple[str, ...]) -> int | None:
    """A class's index from its name or, where no class has that name, its number."""
    if name is None:
        return None
    if name in classes:
        return classes.index(name)
    if name.isdecimal() and int(name) < len(classes):
        return int(name)
    known = dict.fromkeys(classes[:20])
    raise UserError(f"--class {name}: no such class{nearest(name, known)}")
