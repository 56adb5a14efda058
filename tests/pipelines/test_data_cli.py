"""`flowtrain data`: what is printed, as text and as JSON, and the exit status."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from flowtrain.cli import main
from pipelines.data_cli import DAMAGED, DIFFERENT
from schemas.manifest import read_manifest
from tests.pipelines.damage import flip
from tests.pipelines.datasets import make, tensors


def data(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["data", *map(str, arguments)], catch_exceptions=False)


@pytest.fixture
def first(tmp_path: Path) -> Path:
    make(tmp_path / "first", [{"a": "ant"}, {"b": "bee"}])
    return tmp_path / "first"


def test_inspect_prints_text_or_json(first: Path) -> None:
    told = json.loads(data("inspect", first, "--json").stdout)
    assert told["histogram"] == {"ant": 1, "bee": 1}
    assert told["digest"] == read_manifest(first).digest()
    assert told["digest"] in data("inspect", first).stdout


def test_what_chooses_records_of_a_picture_needs_one(first: Path) -> None:
    for option in ("--num", "--seed"):
        result = data("inspect", first, option, 3)
        assert result.exit_code == 2
        assert "give --grid FILE.png as well" in result.stderr
        assert result.stdout == ""


def test_verify_says_whole_or_damaged(first: Path) -> None:
    result = data("verify", first)
    assert (result.exit_code, result.stdout.count("\n")) == (0, 1)
    assert f"{first} is whole: " in result.stdout
    assert json.loads(data("verify", first, "--json").stdout)["whole"] is True
    (first / "stray.txt").write_text("x")
    shard = first / read_manifest(first).shards[1].name
    flip(shard, 8 * 100)
    result = data("verify", first)
    assert result.exit_code == DAMAGED
    assert f"{first} is damaged:\n  {shard.name}: " in result.stdout
    assert "To make only that again:\n  rm " in result.stdout
    assert "not part of the dataset: stray.txt" in result.stdout
    told = json.loads(data("verify", first, "--json").stdout)
    assert told["whole"] is False
    assert [damage["file"] for damage in told["damaged"]] == [shard.name]


def test_diff_says_same_or_different(first: Path, tmp_path: Path) -> None:
    assert data("diff", first, first).exit_code == 0
    changes = {"b": tensors("c")}
    make(tmp_path / "second", [{"a": "ant"}, {"b": "bee"}], changes=changes)
    assert data("diff", first, tmp_path / "second").exit_code == DIFFERENT
    assert data("diff", first, tmp_path / "second", "--json").exit_code == DIFFERENT
    assert data("diff", first, tmp_path / "none").exit_code == 2


def test_merge_tells_what_it_made(first: Path, tmp_path: Path) -> None:
    make(tmp_path / "second", [{"c": "cat"}], classes=("cat",))
    out = tmp_path / "out"
    told = json.loads(data("merge", first, tmp_path / "second", out, "--json").stdout)
    assert told == {
        "out": str(out),
        "records": 3,
        "classes": 3,
        "shards": 3,
        "parts": 2,
        "digest": read_manifest(out).digest(),
    }
    again = data("merge", first, tmp_path / "second", out)
    assert again.exit_code == 0
    assert f"digest   {told['digest']}" in again.stdout.splitlines()
