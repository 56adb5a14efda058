"""JSON of files: what is no JSON of ours is a ValueError, whichever way it is wrong."""

import json
from pathlib import Path

import pytest

from schemas.errors import UserError
from schemas.json_text import MOST_LEVELS, parse_json, parse_object
from schemas.manifest import parse_manifest
from schemas.run import read_run

VALUES = (None, 1, 1.5, "[" * 100, [], {}, [[1], {"a": [2]}], {"a": {"b": [1, 2]}}, [[]] * 1000)
DEEP = [bracket * 100_000 for bracket in ("[", '{"a":')]


@pytest.mark.parametrize("value", VALUES)
def test_values_come_back(value: object) -> None:
    text = json.dumps(value)
    assert parse_json(text) == parse_json(text.encode()) == value


def nested(levels: int) -> str:
    return '{"a":' * levels + "0" + "}" * levels


@pytest.mark.parametrize("text", [*DEEP, nested(100_000), "", "{", b"\xff", "9" * 5000, "[" * 65])
def test_what_is_no_json_is_a_value_error(text: str | bytes) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        parse_json(text)


def test_levels_are_counted() -> None:
    for make in (nested, lambda levels: "[" * levels + "]" * levels):
        parse_json(make(MOST_LEVELS))
        with pytest.raises(ValueError, match="more than 64 lists and objects"):
            parse_json(make(MOST_LEVELS + 1))


def test_an_object_is_no_list() -> None:
    assert parse_object('{"a": 1}') == {"a": 1}
    with pytest.raises(ValueError, match="not a JSON object"):
        parse_object("[1]")


@pytest.mark.parametrize("levels", [65, 900, 100_000])
def test_deep_files_are_one_line(levels: int, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(nested(levels))
    with pytest.raises(UserError, match=r"run\.json: damaged"):
        read_run(tmp_path)
    with pytest.raises(UserError, match="not a readable manifest"):
        parse_manifest(nested(levels), "x")


def test_no_other_module_parses_json_of_files() -> None:
    root = Path(__file__).resolve().parents[2]
    for package in ("schemas", "pipelines", "flowtrain", "evaluation"):
        for path in (root / package).rglob("*.py"):
            if path.name != "json_text.py":
                assert "json.load" not in path.read_text(), f"{path}: use schemas.json_text"
