"""The script that `make lint` counts with: each count sees what is over, and nothing else."""

import ast
import textwrap

import pytest

from tests import density


def function(source: str) -> density.Function:
    return next(density.functions(ast.parse(textwrap.dedent(source))))[1]


@pytest.mark.parametrize(
    ("body", "branches"),
    [
        ("pass", 0),
        ("if a: pass", 1),
        ("if a: pass\nelif b: pass\nelse: pass", 2),
        ("if a and b or c: pass", 3),
        ("if a and b and c: pass", 3),
        ("x = 1 if a else 2", 1),
        ("for i in a: pass\nelse: pass", 2),
        ("while a: pass", 1),
        ("with a: pass", 0),
        ("assert a", 1),
        ("x = [i for i in a if i for j in i]", 3),
        ("try: pass\nexcept A: pass\nexcept B: pass\nelse: pass\nfinally: pass", 3),
        ("match a:\n  case 1: pass\n  case 2: pass\n  case _: pass", 2),
        ("match a:\n  case 1: pass\n  case (2 | 3) as b: pass", 2),
        ("def inner():\n  if a: pass", 0),
        ("x = lambda: 1 if a else 2", 1),
    ],
)
def test_complexity_counts_as_radon_does(body: str, branches: int) -> None:
    # the numbers are those that radon 6.0.1 gives
    source = "def f():\n" + textwrap.indent(body, "  ")
    assert density.complexity(function(source)) == 1 + branches


def test_parameters_are_counted_without_the_object_itself() -> None:
    assert density.parameters(function("def f(self, a, /, b, *c, d=1, **e): pass")) == 3


def test_a_ternary_in_a_ternary_is_nested_wherever_it_stands() -> None:
    assert density.nested_ternaries(ast.parse("x = 1 if a else 2 if b else 3")) == 1
    assert density.nested_ternaries(ast.parse("x = f([1 if a else 2]) if b else 3")) == 1
    assert density.nested_ternaries(ast.parse("x = 1 if a else 2; y = 3 if b else 4")) == 0


def test_everything_over_is_found_under_its_name() -> None:
    many = ", ".join(f"a{number}" for number in range(8))
    long_body = "        pass\n" * 60
    wide = "    x = '" + "x" * 100 + "'\n"
    source = f"class C:\n    def long(self):\n{long_body}\n    def many({many}): pass\n{wide}"
    source += "\n" * 340

    found = density.count_file("m.py", source)

    assert found == {
        density.FUNCTION_LINES: {"m.py:C.long": "61"},
        density.PARAMETERS: {"m.py:C.many": "8"},
        density.COLUMNS: {"m.py": "1"},
        density.FILE_LINES: {"m.py": str(len(source.splitlines()))},
    }


def test_homonyms_are_public_names_of_two_modules() -> None:
    texts = {
        "p/a.py": "class Block: pass\nclass _Own: pass\nNAME = 1\nParams = dict",
        "p/b.py": "class Block: pass\nclass _Own: pass\nNAME = 1\nclass Params: pass",
    }
    assert density.homonyms("p", texts) == {
        "p:Block": "p/a.py, p/b.py",
        "p:Params": "p/a.py, p/b.py",
    }


def test_the_table_of_the_allowed_only_gets_shorter() -> None:
    found = {density.COMPLEXITY: {"m.py:f": "13", "m.py:g": "14"}}
    allowed = {density.COMPLEXITY: {"m.py:f", "m.py:gone"}}

    faults = density.judge(found, allowed)

    assert [fault.partition(": ")[0] for fault in faults] == ["m.py:g", "m.py:gone"]
    assert density.judge(found, {density.COMPLEXITY: {"m.py:f", "m.py:g"}}) == []
