"""Facts as text: nested values under dotted names, and rows in aligned columns."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

# C0 but for tab and line feed, DEL, C1, line separators, and what changes the direction of text
_CONTROL = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]"
)


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


def printable(text: str) -> str:
    """Text for a terminal: control characters as escapes, but for the ends of lines and tabs.

    Names of files and classes come from anywhere; raw, they could move the cursor, hide what was
    said, or change the direction of what follows.
    """
    return _CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """A line a row, columns padded to their widest cell and two spaces apart."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
