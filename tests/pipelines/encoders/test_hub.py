"""Files by hub id: fetched from a server on loopback, or found in the cache.

The client reads its settings at import, so each look-up runs in a process of its own.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pipelines.hub_server import Hub, serving

FIRST, SECOND = "1" * 40, "2" * 40
NAME = "model.safetensors"
LOOK_UP = """
import json, sys, time
time.sleep = lambda seconds: 1 / 0  # nobody is kept waiting for tries that follow upon each other
from pipelines.encoders.hub import fetch_file
from schemas.errors import UserError
for repository, revision in json.loads(sys.argv[1]):
    try:
        print(json.dumps(fetch_file(repository, "model.safetensors", revision).read_text()))
    except UserError as error:
        print(json.dumps({"told": str(error)}))
"""


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    repositories = {
        "org/dino": {FIRST: {NAME: b"first", "pytorch_model.bin": b"-"}, SECOND: {NAME: b"second"}},
        "org/gated": {FIRST: {NAME: b"gated"}},
        "org/text": {FIRST: {"README.md": b"nothing here"}},
    }
    references = {name: {"main": FIRST} for name in repositories}
    references["org/dino"]["v2"] = SECOND
    with serving(Hub(repositories, references, gated=frozenset({"org/gated"}))) as served:
        yield served


def look_up(
    home: Path, *names: tuple[str, str | None], **environment: str
) -> list[str | dict[str, str]]:
    """The content of each file, or what the user is told."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-c", LOOK_UP, json.dumps(names)],
        env={**clean, "HF_HOME": str(home), "HF_HUB_DISABLE_PROGRESS_BARS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_is_fetched_once_and_then_taken_from_the_cache(hub: Hub, tmp_path: Path) -> None:
    names = [("org/dino", None), ("org/dino", "v2"), ("org/dino", None), ("org/dino", FIRST)]
    contents = ["first", "second", "first", "first"]
    assert look_up(tmp_path, *names, HF_ENDPOINT=hub.endpoint) == contents
    assert hub.fetched() == [NAME, NAME]
    hub.requests.clear()
    assert look_up(tmp_path, *names, HF_ENDPOINT=hub.endpoint) == contents
    assert look_up(tmp_path, *names, HF_HUB_OFFLINE="1") == contents
    assert hub.requests == []


def test_what_cannot_be_had_is_told_in_one_line(hub: Hub, tmp_path: Path) -> None:
    names = [("org/missing", None), ("org/gated", None), ("org/text", None), ("org/dino", "v3")]
    found = look_up(tmp_path, *names, HF_ENDPOINT=hub.endpoint)
    found += look_up(tmp_path, ("org/dino", None), HF_HUB_OFFLINE="1")
    found += look_up(tmp_path, ("org/dino", None), HF_ENDPOINT="http://127.0.0.1:9")
    expected = [
        "no such repository",
        "accept its terms",
        "the repository has no such file",
        "of org/dino at revision v3 from the hub: it has no such revision",
        f"not in the cache {tmp_path / 'hub'}, and HF_HUB_OFFLINE is set",
        "the hub at http://127.0.0.1:9 gave no answer",
    ]
    assert len(found) == len(expected)
    for result, part in zip(found, expected, strict=True):
        assert isinstance(result, dict)
        assert result["told"].startswith(f"cannot get {NAME} of org/")
        assert part in result["told"]
        assert "\n" not in result["told"]
