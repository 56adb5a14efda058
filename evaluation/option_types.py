"""How options of the commands are read: numbers and names separated by commas, ranges."""

from collections.abc import Callable
from typing import Any, TypeVar

import click

from flowtrain.option_types import READ
from pipelines.option_types import COUNT, FiniteRange
from pipelines.preprocess.thresholds import MAX_BAD_FRACTION
from schemas.solvers import MOST_STEPS

AT_LEAST_2 = click.IntRange(min=2, max=COUNT.max)
STEPS = click.IntRange(min=1, max=MOST_STEPS)
SEED = click.IntRange(min=0, max=2**32 - 1)  # JAX keys are made of 32 bits
ABOVE_0 = FiniteRange(min=0, min_open=True)
_F = TypeVar("_F", bound=Callable[..., Any])


class Numbers(click.ParamType):
    """Numbers separated by commas, without repetitions, or `count` of them."""

    def __init__(
        self,
        kind: type[int] | type[float],
        least: float,
        count: int | None = None,
        *,
        most: float = float("inf"),
    ):
        self.kind, self.least, self.most, self.count = kind, least, most, count
        self.name = "n,n,..." if count is None else ",".join("n" * count)

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...] | tuple[float, ...]:
        if not isinstance(value, str):
            return tuple(value)
        try:
            numbers = tuple(self.kind(part) for part in value.split(","))
        except ValueError:
            self.fail(f"{value!r} is not numbers separated by commas, as in 100,20,5,1", param, ctx)
        if not all(self.least <= number < float("inf") for number in numbers):
            self.fail(f"{value!r}: each must be at least {self.least:g}", param, ctx)
        if max(numbers) > self.most:
            self.fail(f"{value!r}: each must be at most {self.most:,.0f}", param, ctx)
        if self.count is None:
            return tuple(dict.fromkeys(numbers))
        if len(numbers) != self.count:
            self.fail(f"{value!r}: give {self.count} numbers", param, ctx)
        return numbers


class Names(click.ParamType):
    """Names separated by commas."""

    name = "name,name,..."

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        if not isinstance(value, str):
            return tuple(value)
        return tuple(dict.fromkeys(name.strip() for name in value.split(",")))


def bad_fraction_option(command: _F) -> _F:
    """How many images of a folder, tar or other source may be unusable, as `preprocess` has it."""
    return click.option(
        "--max-bad-fraction",
        type=FiniteRange(0, 1),
        default=MAX_BAD_FRACTION,
        show_default=True,
        help="Fail when more of the images cannot be read.",
    )(command)


def alone(ctx: click.Context, param: click.Parameter, value: Any) -> tuple[Any, ...]:
    """The value of an option, where the request has room for several; none where it was left
    out.
    """
    return () if value is None else (value,)


def extractor_options(command: _F) -> _F:
    """Where the weights of an extractor are."""
    path = (
        "A file, or a folder that holds it.  [default: cache, installed package, then the public "
        "release]"
    )
    digest = "Of other weights: of the file, or of Inception's tensors."
    for option in (
        click.option(
            "--extractor-sha256", metavar="HEX", help=f"{digest}  [default: as published]"
        ),
        click.option("--extractor-weights", type=READ, help=path),
    ):
        command = option(command)
    return command
