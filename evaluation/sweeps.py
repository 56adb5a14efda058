"""`eval --sweep KEY=VALUE,VALUE`: one request for every combination of values."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from evaluation.options import SWEPT, EvalOptions
from schemas.errors import UserError
from schemas.rules import Rule, check

MOST_SAMPLES = 10**9
_LISTS = ("steps", "cfg")  # of which a request holds several values anyway


@dataclass(frozen=True)
class _Sweep:
    """One --sweep: as it was typed, its key, and its values, of the kind that the key takes."""

    text: str
    key: str
    values: tuple[Any, ...]


def _any(keys: tuple[str, ...], refused: Callable[[Any], bool]) -> Callable[[_Sweep], bool]:
    """Whether a sweep over one of the keys has a value that is refused."""
    return lambda sweep: sweep.key in keys and any(map(refused, sweep.values))


def _unsampled(sweep: _Sweep) -> str:
    return f"--sweep {sweep.text}: seeds are below 2^32, and a distance needs 2 samples"


_RULES: tuple[Rule[_Sweep], ...] = (
    Rule(
        _any(("steps", "num-samples", "shift", "tolerance"), lambda value: value <= 0),
        lambda sweep: f"--sweep {sweep.text}: each must be above 0",
    ),
    Rule(
        _any(("step", "seed", "cfg"), lambda value: value < 0),
        lambda sweep: f"--sweep {sweep.text}: none may be below 0",
    ),
    Rule(_any(("seed",), lambda value: value >= 2**32), _unsampled),
    Rule(_any(("num-samples",), lambda value: value < 2), _unsampled),
    Rule(
        _any(("num-samples",), lambda value: value > MOST_SAMPLES),
        lambda sweep: f"--sweep {sweep.text[:60]}: at most {MOST_SAMPLES:,} samples",
    ),
)


def swept(options: EvalOptions) -> list[EvalOptions]:
    """The request once for every combination of swept values, the first sweep varying slowest.

    Raises:
        UserError: a sweep that is not KEY=VALUE,VALUE, of an unknown key, twice of one, or of
            another kind of value.
    """
    sweeps: dict[str, _Sweep] = {}
    for text in options.sweeps:
        key, separator, values = text.partition("=")
        if not separator or key not in SWEPT:
            raise UserError(
                f"--sweep {text}: write KEY=VALUE,VALUE with a key of {', '.join(SWEPT)}"
            )
        if key in sweeps:
            raise UserError(f"--sweep {key}: is given twice; put all values into one")
        sweeps[key] = _read(text, key, values)
        check(_RULES, sweeps[key])
    lists = {key: sweep.values for key, sweep in sweeps.items() if key in _LISTS}
    others = {
        key.replace("-", "_"): sweep.values for key, sweep in sweeps.items() if key not in _LISTS
    }
    combinations = itertools.product(*others.values())
    return [
        replace(options, **lists, **dict(zip(others, chosen, strict=True)))
        for chosen in combinations
    ]


def _read(text: str, key: str, values: str) -> _Sweep:
    """The values of a sweep, each once. Raises `UserError` where one is of another kind."""
    try:
        found = [SWEPT[key](value.strip()) for value in values.split(",")]
    except ValueError:
        raise UserError(f"--sweep {text}: {values!r} is not numbers separated by commas") from None
    return _Sweep(text, key, tuple(dict.fromkeys(found)))
