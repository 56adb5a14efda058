"""Rules of what may be asked for, as tables: what breaks a rule, and the line that is told then."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

from schemas.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class Rule(Generic[T]):
    """A sentence, and the predicate that says of a case whether it is to be told.

    Where the sentence names facts of the case, it is a function of it.
    """

    broken: Callable[[T], bool]
    sentence: str | Callable[[T], str]

    def line(self, case: T) -> str:
        """The sentence about a case."""
        return self.sentence if isinstance(self.sentence, str) else self.sentence(case)


def told(rules: Iterable[Rule[T]], case: T) -> list[str]:
    """The lines of all rules that a case breaks, in their order."""
    return [rule.line(case) for rule in rules if rule.broken(case)]


def check(rules: Iterable[Rule[T]], case: T) -> None:
    """Hold a case to the rules, in their order: a later one may rely on those before it.

    Raises:
        UserError: the line of the first rule that it breaks.
    """
    for rule in rules:
        if rule.broken(case):
            raise UserError(rule.line(case))
