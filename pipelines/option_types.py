"""How options of the commands are read: sizes, and other numbers."""

import math
from typing import Any

import click

# Sizes, as large as anyone can mean; beyond them commands ran out of memory, or never ended.
COUNT = click.IntRange(min=1, max=10**9)  # images, records, samples
SIDE = click.IntRange(min=1, max=1 << 16)  # pixels
BATCH = click.IntRange(min=1, max=1 << 20)  # images or samples at once
SHARDS = click.IntRange(min=1, max=100_000)  # their names have five digits


class FiniteRange(click.FloatRange):
    """A number between bounds. Of click's own ranges, all contain nan, and open ones infinity."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number
