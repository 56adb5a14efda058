"""Tables of rules: the first that is broken is told, with the facts of its case."""

import pytest

from schemas.errors import UserError
from schemas.rules import Rule, check, told

RULES = (
    Rule[int](lambda number: number < 0, "none may be below 0"),
    Rule[int](lambda number: number % 2 == 1, lambda number: f"{number} is odd"),
    Rule[int](lambda number: 6 % number > 0, lambda number: f"{number} does not divide 6"),
)


def test_the_first_broken_rule_is_told():
    check(RULES, 2)
    with pytest.raises(UserError, match=r"^none may be below 0$"):
        check(RULES, -3)
    with pytest.raises(UserError, match=r"^5 is odd$"):
        check(RULES, 5)


def test_a_rule_may_rely_on_those_before_it():
    guarded = (Rule[int](lambda number: number == 0, "not 0"), *RULES)
    with pytest.raises(UserError, match="not 0"):
        check(guarded, 0)  # which nothing can be divided by


def test_notices_are_all_told_in_order():
    assert told(RULES, 2) == []
    assert told(RULES, 5) == ["5 is odd", "5 does not divide 6"]
