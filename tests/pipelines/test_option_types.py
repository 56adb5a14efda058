"""Numbers on the command line."""

import click
import pytest
from click.testing import CliRunner

from pipelines.option_types import FiniteRange


@click.command()
@click.option("--fraction", type=FiniteRange(0, 1))
@click.option("--above", type=FiniteRange(min=0, min_open=True))
def shown(fraction: float | None, above: float | None) -> None:
    """Print what was given."""
    click.echo(f"{fraction} {above}")


@pytest.mark.parametrize("value", ["nan", "-nan", "NaN", "inf", "-inf", "1e999"])
@pytest.mark.parametrize("option", ["--fraction", "--above"])
def test_what_is_not_finite_is_refused(option: str, value: str) -> None:
    done = CliRunner().invoke(shown, [option, value])
    assert done.exit_code == 2
    assert f"Invalid value for '{option}'" in done.output


def test_bounds_are_those_of_a_range() -> None:
    assert CliRunner().invoke(shown, ["--fraction", "1", "--above", "1e9"]).output == (
        "1.0 1000000000.0\n"
    )
    assert CliRunner().invoke(shown, ["--fraction", "1.01"]).exit_code == 2
    assert CliRunner().invoke(shown, ["--above", "0"]).exit_code == 2
