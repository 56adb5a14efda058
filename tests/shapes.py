"""The shapes and dtypes in signatures, checked while the tests run.

`check_shapes` hooks into the import of the modules below. Checked are the arguments and results of
their functions at each call from Python, those of compiled functions as they are traced; not the
fields of named tuples, lambdas, all elements of a list but one, nor commands that tests start.
"""

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

    Types of anything else are left to pyright. An annotation with a name that only type checkers
    import (some modules run on machines without pydantic) is not checked.
    """
    function.__annotations__ = {
        name: hint if _speaks_of_arrays(hint) else Any
        for name, hint in function.__annotations__.items()
    }
    return beartype(function)


def _speaks_of_arrays(hint: Any) -> bool:
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        return True
    return any(_speaks_of_arrays(part) for part in typing.get_args(hint))
