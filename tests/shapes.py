"""The shapes and dtypes that signatures name, checked at every call while the tests run.

`check_shapes` hooks into the import of the modules below; what tests start as commands runs
unchecked.
"""

import builtins
import typing
from collections.abc import Callable
from typing import Any

from beartype import beartype
from jaxtyping import AbstractArray, install_import_hook

CHECKED = (
    "evaluation.extractors",
    "evaluation.metrics",
    "flowtrain.flow",
    "flowtrain.model",
    "flowtrain.records.counter",
    "flowtrain.records.latents",
    "flowtrain.step",
    "pipelines.encoders",
    "pipelines.grid",
    "pipelines.images",
)


def check_shapes() -> None:
    """Check the modules of CHECKED from now on; before any of them is imported."""
    install_import_hook(CHECKED, f"{__name__}.checked")


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, refusing arrays as arguments or results that are not as annotated.

    Types of anything else are left to pyright. Where annotations are text, a name that only type
    checkers import (those modules run on machines without pydantic) stands for any type.
    """
    names = _Names(function.__globals__)
    evaluated = {name: _evaluated(hint, names) for name, hint in function.__annotations__.items()}
    function.__annotations__ = {
        name: hint if _speaks_of_arrays(hint) else Any for name, hint in evaluated.items()
    }
    return beartype(function)


class _Names(dict[str, Any]):
    """Names of a module; any other one is `Any`."""

    def __missing__(self, name: str) -> Any:
        return getattr(builtins, name, Any)


def _evaluated(hint: Any, names: dict[str, Any]) -> Any:
    if not isinstance(hint, str):
        return hint
    return eval(hint, {}, names)


def _speaks_of_arrays(hint: Any) -> bool:
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        return True
    return any(_speaks_of_arrays(part) for part in typing.get_args(hint))
