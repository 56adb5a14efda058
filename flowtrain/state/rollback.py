"""A run's position: its step, and the batches passed over when it went back.

A run that goes back from step b to step s would meet the same batches again, and the same end. So
it goes on from s with the batches after those of b, and the numbers of the ones between are never
used.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from schemas.errors import UserError
from schemas.files import write_atomic
from schemas.json_text import parse_json

ROLLBACKS = "rollbacks.json"


@dataclass(frozen=True)
class Position:
    """After `step` steps; `rollbacks` are (step gone back to, batches passed over so far)."""

    step: int = 0
    rollbacks: tuple[tuple[int, int], ...] = ()

    @property
    def batch(self) -> int:
        """Number of the batch that the next step reads."""
        return batch_of(self.step + 1, self.rollbacks)

    def advanced(self) -> "Position":
        """One step on."""
        return replace(self, step=self.step + 1)

    def back(self, bad: int, good: int) -> "Position":
        """At step `good`, with the batches up to that of step `bad` passed over."""
        over = batch_of(bad, self.rollbacks) + 1 - good
        return Position(good, (*self.rollbacks, (good, over)))


def batch_of(step: int, rollbacks: Sequence[tuple[int, int]]) -> int:
    """Number of the batch that `step`, from 1, was made with."""
    passed = [over for good, over in rollbacks if good < step]
    return step - 1 + (passed[-1] if passed else 0)


def write_rollbacks(workdir: Path, rollbacks: Sequence[tuple[int, int]]) -> None:
    """Keep them where `--replay` finds them; no file where there are none."""
    path = workdir / ROLLBACKS
    if rollbacks:
        write_atomic(path, json.dumps([list(one) for one in rollbacks]) + "\n")
    else:
        path.unlink(missing_ok=True)


def read_rollbacks(workdir: Path) -> tuple[tuple[int, int], ...]:
    """What `write_rollbacks` wrote.

    Raises:
        UserError: the file is damaged.
    """
    path = workdir / ROLLBACKS
    if not path.exists():
        return ()
    try:
        return tuple((int(good), int(over)) for good, over in parse_json(path.read_bytes()))
    except (ValueError, TypeError):
        raise UserError(
            f"{path}: damaged, and which batches made a step is not known without it; train in a "
            "new directory"
        ) from None
