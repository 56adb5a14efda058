"""How the command line is read: numbers and names between commas, and what is not taken."""

import ast

import click
import pytest
from click.testing import CliRunner

from evaluation.option_types import ABOVE_0, SEED, Names, Numbers, alone, extractor_options


@click.command()
@click.option("--steps", type=Numbers(int, 1, most=1000), default=())
@click.option("--cfg", type=Numbers(float, 0), default=())
@click.option("--interval", type=Numbers(float, 0, 2))
@click.option("--metrics", type=Names(), default=())
@click.option("--one", type=int, callback=alone)
@click.option("--shift", type=ABOVE_0)
@click.option("--seed", type=SEED)
@extractor_options
def shown(**options: object) -> None:
    """Print what was given."""
    given = {name: value for name, value in options.items() if value not in (None, ())}
    click.echo(repr(given))


def given(*words: str) -> object:
    done = CliRunner().invoke(shown, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return ast.literal_eval(done.output)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], {}),
        (["--steps", "100,20,5,1"], {"steps": (100, 20, 5, 1)}),
        (["--steps", "5,1,5,1"], {"steps": (5, 1)}),
        (["--cfg", "1,1.50,4,1.5"], {"cfg": (1.0, 1.5, 4.0)}),
        (["--cfg", "0"], {"cfg": (0.0,)}),
        (["--interval", "0.1,0.8"], {"interval": (0.1, 0.8)}),
        (["--interval", "0.5,0.5"], {"interval": (0.5, 0.5)}),  # these are no repetition
        (["--metrics", "pr, dc,pr"], {"metrics": ("pr", "dc")}),
        (["--one", "3"], {"one": (3,)}),
        (["--seed", "4294967295"], {"seed": 2**32 - 1}),
        (["--extractor-sha256", "ab"], {"extractor_sha256": "ab"}),
    ],
)
def test_what_is_typed_is_what_a_request_holds(words: list[str], expected: object) -> None:
    assert given(*words) == expected


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--steps", "10,x"], "'10,x' is not numbers separated by commas, as in 100,20,5,1"),
        (["--steps", "10,"], "is not numbers separated by commas"),
        (["--steps", "1.5"], "is not numbers separated by commas"),
        (["--steps", "3,0"], "'3,0': each must be at least 1"),
        (["--steps", "3,1001"], "'3,1001': each must be at most 1,000"),
        (["--cfg", "-1"], "'-1': each must be at least 0"),
        (["--cfg", "nan"], "each must be at least 0"),
        (["--cfg", "inf"], "each must be at least 0"),
        (["--interval", "0.5"], "'0.5': give 2 numbers"),
        (["--interval", "0,1,1"], "'0,1,1': give 2 numbers"),
        (["--shift", "0"], "0.0 is not in the range x>0"),
        (["--seed", "4294967296"], "is not in the range 0<=x<=4294967295"),
    ],
)
def test_what_is_not_taken_names_the_option(words: list[str], told: str) -> None:
    done = CliRunner().invoke(shown, words, catch_exceptions=False)
    assert done.exit_code == 2
    assert f"Invalid value for '{words[0]}'" in done.output
    assert told in done.output
