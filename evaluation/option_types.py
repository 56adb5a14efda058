"""How options of the commands are read: numbers and names separated by commas, ranges, paths."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

PATH = click.Path(path_type=Path)
POSITIVE = click.IntRange(min=1)
SEED = click.IntRange(min=0, max=2**32 - 1)  # JAX keys are made of 32 bits
ABOVE_0 = click.FloatRange(min=0, min_open=True)
_F = TypeVar("_F", bound=Callable[..., Any])


class Numbers(click.ParamType):
    """Numbers separated by commas, without repetitions, or `count` of them."""

    def __init__(self, kind: type[int] | type[float], least: float, count: int | None = None):
        self.kind, self.least, self.count = kind, least, count
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
        click.option("--extractor-weights", type=PATH, help=path),
    ):
        command = option(command)
    return command
