"""JSON out of files, which may hold anything: whatever is no JSON of ours is a ValueError."""

import json
from typing import Any

# of lists and objects in each other; ours have a few levels, and Python's own limit is that of its
# stack, beyond which also comparing, writing and printing a value ends in a RecursionError
MOST_LEVELS = 64


def parse_json(text: str | bytes) -> Any:
    """The value that a text holds.

    Raises:
        ValueError: no JSON, no UTF-8, numbers of more digits than Python reads, or more than
            `MOST_LEVELS` lists and objects in each other.
    """
    try:
        value = json.loads(text)
    except RecursionError:
        raise _too_deep() from None
    if _brackets(text) > MOST_LEVELS:  # with fewer it cannot be nested as deeply
        _check_levels(value)
    return value


def parse_object(text: str | bytes) -> dict[str, Any]:
    """The JSON object that a text holds; raises as `parse_json`, and where it is something else."""
    value = parse_json(text)
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    return value


def _brackets(text: str | bytes) -> int:
    if isinstance(text, bytes):
        return text.count(b"[") + text.count(b"{")
    return text.count("[") + text.count("{")


def _check_levels(value: Any) -> None:
    level = [value]
    for _ in range(MOST_LEVELS):
        level = [inner for outer in level for inner in _within(outer)]
        if not level:
            return
    raise _too_deep()


def _within(value: Any) -> list[Any]:
    """The lists and objects directly within one."""
    values = value.values() if isinstance(value, dict) else value
    return [inner for inner in values if isinstance(inner, dict | list)]


def _too_deep() -> ValueError:
    return ValueError(f"more than {MOST_LEVELS} lists and objects in each other")
