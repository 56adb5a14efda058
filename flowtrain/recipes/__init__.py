"""The recipes that ship with the package: one TOML file each, read by
`schemas.recipes.load_recipe`.
"""

import difflib
from pathlib import Path

from schemas.errors import UserError

_DIRECTORY = Path(__file__).resolve().parent


def recipe_names() -> tuple[str, ...]:
    """Names of the shipped recipes, sorted."""
    return tuple(sorted(path.stem for path in _DIRECTORY.glob("*.toml")))


def find_recipe(name_or_path: str) -> Path:
    """A shipped recipe's file, or the user's (a name with a slash or ending in .toml).

    Raises:
        UserError: no such recipe (the nearest right name is given) or no such file.
    """
    if "/" in name_or_path or name_or_path.endswith(".toml"):
        path = Path(name_or_path)
        if not path.is_file():
            raise UserError(
                f"{path}: no such recipe file; shipped recipes are {', '.join(recipe_names())}"
            )
        return path
    if name_or_path not in recipe_names():
        close = difflib.get_close_matches(name_or_path, recipe_names(), n=1, cutoff=0.4)
        hint = (
            f"did you mean {close[0]!r}?"
            if close
            else f"there are {', '.join(recipe_names())}, or give a TOML file"
        )
        raise UserError(f"unknown recipe {name_or_path!r}; {hint}")
    return _DIRECTORY / f"{name_or_path}.toml"
