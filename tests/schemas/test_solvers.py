"""The list of solvers, and the two pages that repeat it."""

from pathlib import Path
from typing import get_args

import pytest

from schemas.solvers import ADAPTIVE, EVALUATIONS, Solver

DOCS = Path(__file__).parents[2] / "docs"


def test_every_solver_has_its_cost():
    assert {*EVALUATIONS, ADAPTIVE} == {*get_args(Solver)}


@pytest.mark.parametrize("page", ["training.md", "evaluation.md"])
def test_the_pages_name_every_solver(page: str):
    text = (DOCS / page).read_text()
    assert [name for name in get_args(Solver) if f"`{name}`" not in text] == []
