"""Recipes as TOML: read with overrides, checked by name, written as what they resolve to."""

import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from schemas.config import DEFAULTS, DiTSize, Recipe
from schemas.errors import UserError, nearest

# An override of one of these (with what it is when left out) takes what it governs out of a file
# that was written for another one, unless that is overridden too.
_GOVERNED: dict[tuple[str, str], tuple[str | None, dict[str, tuple[str, ...]]]] = {
    ("model", "size"): (None, {"model": DiTSize._fields}),
    ("objective", "kind"): (
        "flow",
        {table: tuple(content) for table, content in DEFAULTS["diffusion"].items()},
    ),
}


def format_recipe(recipe: Recipe) -> str:
    """A resolved recipe as TOML, which `load_recipe` reads back; None is left out."""
    lines = []
    for table, content in recipe_tables(recipe).items():
        said = {name: value for name, value in content.items() if value is not None}
        lines += [
            f"[{table}]",
            *(f"{name} = {json.dumps(value)}" for name, value in said.items()),
            "",
        ]
    return "\n".join(lines)


def recipe_tables(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """Values of JSON by table and key, as they are typed and shown."""
    tables = recipe.model_dump(mode="json")
    tables["train"]["flip"] = recipe.train.flip  # files keep another word for it
    return tables


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a TOML recipe and apply `table.key=value` overrides (TOML values or bare words).

    Raises:
        UserError: unreadable file, unknown key (the nearest right name is given), or a bad value.
    """
    try:
        content = tomllib.loads(path.read_text())
    except OSError:
        raise UserError(f"{path}: cannot read the recipe") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid TOML: {error}") from None
    return make_recipe(content, overrides, where=str(path))


def make_recipe(
    content: Mapping[str, Any], overrides: Sequence[str] = (), *, where: str = "recipe"
) -> Recipe:
    """Validate a recipe's content after overrides; raises as `load_recipe`."""
    tables: dict[str, Any] = {
        name: dict(table) if isinstance(table, Mapping) else table
        for name, table in content.items()
    }
    parsed = [_parse_override(override) for override in overrides]
    for table, _, _ in parsed:
        if not isinstance(tables.setdefault(table, {}), dict):
            raise UserError(f"{where}: [{table}] must be a table")
    for override in parsed:
        _forget_governed(tables, *override)
    for table, key, value in parsed:
        tables[table][key] = value
    _check_names(tables, where)
    if tables.get("train", {}).get("flip") is True:
        tables["train"]["flip"] = "always"  # only run.json has true for "auto"
    try:
        return Recipe.model_validate(tables)
    except ValidationError as error:
        first = error.errors()[0]
        # the second is empty where two tables disagree
        place = [
            where,
            ".".join(str(part) for part in first["loc"]),
        ]
        message = first["msg"].removeprefix("Value error, ")
        raise UserError(": ".join([*filter(None, place), message])) from None


def _forget_governed(tables: dict[str, Any], table: str, key: str, value: Any) -> None:
    """Before an override of a key of `_GOVERNED`: drop what the file spells out for it."""
    unsaid, governed = _GOVERNED.get((table, key), (value, {}))
    if tables[table].get(key, unsaid) == value:
        return
    for name, fields in governed.items():
        if isinstance(tables.get(name), dict):
            tables[name] = {
                field: said for field, said in tables[name].items() if field not in fields
            }


def _parse_override(text: str) -> tuple[str, str, Any]:
    name, separator, value = text.partition("=")
    table, dot, key = name.strip().partition(".")
    if not separator or not dot or not table or not key:
        raise UserError(f"--set {text!r}: write table.key=value, for example --set train.steps=100")
    try:
        parsed = tomllib.loads(f"value = {value}")
    except tomllib.TOMLDecodeError:
        parsed = {"value": value.strip()}
    except (ValueError, RecursionError):  # more digits, or more brackets, than Python reads
        raise UserError(f"--set {name.strip()}: the value is too long") from None
    several = len(parsed) > 1 or "\n" in str(parsed["value"])
    if several:
        raise UserError(f"--set {text!r}: several lines; give each value its own --set")
    return table, key, parsed["value"]


def _check_names(tables: Mapping[str, Any], where: str) -> None:
    for table, content in tables.items():
        field = Recipe.model_fields.get(table)
        if field is None:
            raise UserError(
                f"{where}: unknown table [{table}]{nearest(table, Recipe.model_fields)}"
            )
        if not isinstance(content, Mapping):
            raise UserError(f"{where}: [{table}] must be a table")
        model = field.annotation
        assert isinstance(model, type)
        assert issubclass(model, BaseModel)
        for key in content:
            if key not in model.model_fields:
                raise UserError(
                    f"{where}: unknown key {table}.{key}{nearest(key, model.model_fields)}"
                )
