"""Facts as text: nested values under dotted names, and rows in aligned columns."""

from collections.abc import Mapping, Sequence
from typing import Any


def dotted(values: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings as one: `{"vae": {"id": 1}}` is `{"vae.id": 1}`, in the same order."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}.{inner}": each for inner, each in dotted(value).items()}
        else:
            flat[name] = value
    return flat


def differing(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Both values of each dotted name that differs, None where a side has none, in order."""
    old, new = dotted(before), dotted(after)
    return {
        name: (old.get(name), new.get(name))
        for name in {**old, **new}
        if old.get(name) != new.get(name)
    }


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """A line a row, columns padded to their widest cell and two spaces apart."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
