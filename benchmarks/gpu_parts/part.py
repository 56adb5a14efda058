"""Name, limit and inputs of a part, and how it tells its results."""

import importlib
import importlib.util
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

SITE = "site"  # of a work directory: packages that came as wheels
SHAPES = ("jaxtyping", "wadler_lindig")  # what every network and solver names its shapes by
PYDANTIC = ("pydantic", "pydantic_core", "annotated_types", "typing_inspection")


@dataclass(frozen=True)
class Part:
    """What can be asked for by name.

    Attributes:
        name: on the command line.
        line: what it measures, in one line.
        limit: seconds after which it is ended.
        module: of this package, with a function `run(Context)`.
        packages: import names that it needs besides jax, flax, optax, orbax, numpy and torch.
        inputs: names of `inputs.INPUTS`; a part without one of them says what it leaves out.
        by_default: whether it runs where no parts are named.
    """

    name: str
    line: str
    limit: float
    module: str
    packages: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()
    by_default: bool = True

    def missing_packages(self, work: Path) -> list[str]:
        """Those of `packages` that are neither installed nor came as wheels to `work`."""
        return [
            name
            for name in self.packages
            if importlib.util.find_spec(name) is None and not (work / SITE / name).exists()
        ]

    def load(self) -> Callable[["Context"], None]:
        """The function that runs it."""
        return importlib.import_module(self.module).run


@dataclass(frozen=True)
class Context:
    """What a part is given.

    Attributes:
        part: its name.
        module: where its function `run` is.
        work: the directory that later calls find again.
        rows: JSON lines, one a result, in the order in which they came.
        tiny: sizes that show that everything runs, and no rate.
        deadline: `time.time()` at which the part is ended.
        options: of the command line, for the parts that have some.
    """

    part: str
    module: str
    work: Path
    rows: Path
    tiny: bool
    deadline: float
    options: dict[str, Any] = field(default_factory=dict)

    def emit(self, **row: Any) -> None:
        """Keep one result, whatever becomes of the part afterwards."""
        with self.rows.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(row, default=float) + "\n")
        print(
            f"{self.part}: " + ", ".join(f"{name} {_short(value)}" for name, value in row.items()),
            flush=True,
        )

    def unfinished(self, reason: str) -> None:
        """Say that a later call goes on with this part, and why."""
        self.emit(unfinished=reason)

    @property
    def left(self) -> float:
        """Seconds until the part is ended."""
        return self.deadline - time.time()

    def cache(self, name: str) -> Path:
        """A directory for files that can be made again."""
        path = self.work / "cache" / name
        path.mkdir(parents=True, exist_ok=True)
        return path

    def to_json(self) -> str:
        """The inverse of `from_json`."""
        return json.dumps(asdict(self), default=str)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """From a command line."""
        fields = json.loads(text)
        return cls(**{**fields, "work": Path(fields["work"]), "rows": Path(fields["rows"])})


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
