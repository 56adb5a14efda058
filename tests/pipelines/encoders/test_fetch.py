"""VAEs by hub id: fetched from a server on loopback, or found in a cache laid out as the hub's
client does it.

The client reads its settings at import, so each look-up runs in a process of its own.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.encoders.locate import EMBEDDED_DIRECTORY, vae_digest
from pipelines.encoders.weight_files import CONFIG_FILE, INDEX_FILE, WEIGHTS_FILE
from schemas.manifest import read_manifest
from tests.pipelines.hub_server import Hub, content_tag, serving

FIRST, SECOND = "1" * 40, "2" * 40
CONFIG = (EMBEDDED_DIRECTORY / CONFIG_FILE).read_bytes()
WEIGHTS = (EMBEDDED_DIRECTORY / WEIGHTS_FILE).read_bytes()
OTHER = {
    "v1-5-pruned.safetensors": b"other models",
    "unet/diffusion_pytorch_model.safetensors": b"of many gigabytes",
}
REPOSITORIES = {
    "org/vae": {
        FIRST: {
            CONFIG_FILE: CONFIG,
            WEIGHTS_FILE: WEIGHTS,
            "diffusion_pytorch_model.bin": b"pickled",
            **OTHER,
        },
        SECOND: {CONFIG_FILE: CONFIG, WEIGHTS_FILE: WEIGHTS + b"!"},
    },
    "org/moved": {
        FIRST: {CONFIG_FILE: CONFIG, WEIGHTS_FILE: WEIGHTS},
        SECOND: {CONFIG_FILE: CONFIG, WEIGHTS_FILE: b"-"},
    },
    "org/pipeline": {
        FIRST: {
            "model_index.json": b"{}",
            f"vae/{CONFIG_FILE}": CONFIG,
            f"vae/{WEIGHTS_FILE}": WEIGHTS,
            **OTHER,
        }
    },
    "org/odd-place": {FIRST: {f"a/b/{CONFIG_FILE}": CONFIG, f"a/b/{WEIGHTS_FILE}": WEIGHTS}},
    "org/half": {
        FIRST: {
            CONFIG_FILE: CONFIG,
            "diffusion_pytorch_model.fp16.safetensors": WEIGHTS,
            "unet/diffusion_pytorch_model.safetensors": b"of another model",
        }
    },
    "org/sharded": {
        FIRST: {
            CONFIG_FILE: CONFIG,
            INDEX_FILE: json.dumps(
                {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
            ).encode(),
            "one.safetensors": WEIGHTS[:100],
            "two.safetensors": WEIGHTS[100:],
            "three.safetensors": b"not listed",
        }
    },
    "org/pickled": {FIRST: {CONFIG_FILE: CONFIG, "diffusion_pytorch_model.bin": b"pickled"}},
    "org/text": {FIRST: {"README.md": b"nothing here"}},
    "org/gated": {FIRST: {CONFIG_FILE: CONFIG, WEIGHTS_FILE: WEIGHTS}},
}

LOOK_UP = """
import json, sys, time
time.sleep = lambda seconds: None  # the client tries again after a while
from pipelines.encoders.locate import find_vae
from schemas.errors import UserError
for name, revision in json.loads(sys.argv[1]):
    try:
        found = find_vae(name, revision)
        files = sorted(p.name for p in found.directory.iterdir() if p.is_file())
        print(json.dumps([found.name, found.revision, str(found.directory), files]))
    except UserError as error:
        print(json.dumps(str(error)))
"""


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    references = {name: {"main": FIRST} for name in REPOSITORIES}
    references["org/vae"]["v2"] = SECOND
    references["org/moved"] = {"main": SECOND, "v1": FIRST}
    with serving(Hub(REPOSITORIES, references, gated=frozenset({"org/gated"}))) as served:
        yield served


def run_python(
    program: str, argument: Any, home: Path, **environment: str
) -> subprocess.CompletedProcess[str]:
    """A program with one argument, in JSON, and a home of its own for the hub's client."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    return subprocess.run(
        [sys.executable, "-c", program, json.dumps(argument)],
        env={**clean, "HF_HOME": str(home), "HF_HUB_DISABLE_PROGRESS_BARS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def look_up(home: Path, *names: tuple[str, str | None], **environment: str) -> list[Any]:
    """Name, revision, directory and files of each VAE, or the error's text."""
    done = run_python(LOOK_UP, names, home, **environment)
    assert done.returncode == 0, done.stderr
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert all("\n" not in result for result in results if isinstance(result, str))
    return results


def fill_cache(
    home: Path, repository: str, commit: str, files: dict[str, bytes], main: str | None = None
) -> None:
    """What the hub's client leaves behind: contents under their tags, and a snapshot of links to
    them.
    """
    root = home / "hub" / f"models--{repository.replace('/', '--')}"
    for path, content in files.items():
        blob = root / "blobs" / content_tag(content)
        link = root / "snapshots" / commit / path
        for folder in (blob.parent, link.parent):
            folder.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(content)
        link.symlink_to(os.path.relpath(blob, link.parent))
    if main is not None:
        (root / "refs").mkdir(exist_ok=True)
        (root / "refs" / "main").write_text(main)


def test_fetches_config_and_safetensors_only_and_then_works_offline(
    hub: Hub, tmp_path: Path
) -> None:
    hub.requests.clear()
    names = [
        ("org/vae", None),
        ("org/vae", "v2"),
        ("org/pipeline", None),
        ("org/odd-place:a/b", None),
    ]
    found = look_up(tmp_path, *names, HF_ENDPOINT=hub.endpoint)
    assert [result[:2] for result in found] == [
        ["org/vae", FIRST],
        ["org/vae", SECOND],
        ["org/pipeline:vae", FIRST],
        ["org/odd-place:a/b", FIRST],
    ]
    assert all(result[3] == [CONFIG_FILE, WEIGHTS_FILE] for result in found)
    places = [CONFIG_FILE, WEIGHTS_FILE] * 2 + [
        f"{place}/{n}" for place in ("vae", "a/b") for n in (CONFIG_FILE, WEIGHTS_FILE)
    ]
    # The second commit has the same config, which is in the cache by its content.
    assert hub.fetched() == [*places[:2], WEIGHTS_FILE, *places[4:]]
    assert vae_digest(Path(found[0][2])) == content_tag(WEIGHTS)
    assert vae_digest(Path(found[1][2])) == content_tag(WEIGHTS + b"!")
    hub.requests.clear()
    again = look_up(
        tmp_path, *names, ("org/vae", FIRST), HF_ENDPOINT=hub.endpoint, HF_HUB_OFFLINE="1"
    )
    assert again == [*found, found[0]]
    assert hub.requests == []


def test_a_commit_in_the_cache_is_not_asked_for_again(hub: Hub, tmp_path: Path) -> None:
    """As many workers load one VAE by its commit."""
    fill_cache(tmp_path, "org/vae", FIRST, {CONFIG_FILE: CONFIG, WEIGHTS_FILE: WEIGHTS})
    hub.requests.clear()
    assert look_up(tmp_path, ("org/vae", FIRST), HF_ENDPOINT=hub.endpoint)[0][1] == FIRST
    assert hub.requests == []


def test_weights_of_other_names_and_in_several_files(hub: Hub, tmp_path: Path) -> None:
    half, sharded = look_up(
        tmp_path, ("org/half", None), ("org/sharded", None), HF_ENDPOINT=hub.endpoint
    )
    assert half[3] == [CONFIG_FILE, "diffusion_pytorch_model.fp16.safetensors"]
    assert sharded[3] == [CONFIG_FILE, INDEX_FILE, "one.safetensors", "two.safetensors"]


def test_what_cannot_be_had_is_told_in_one_line(hub: Hub, tmp_path: Path) -> None:
    names = [
        "org/missing",
        "org/gated",
        "org/pickled",
        "org/text",
        "org/vae:unet",
        "org/pipeline:text",
    ]
    told = look_up(
        tmp_path, *((name, None) for name in names), ("org/vae", "v3"), HF_ENDPOINT=hub.endpoint
    )
    missing, gated, pickled, text, unet, folder, revision = told
    assert "org/missing" in missing
    assert "no such repository" in missing
    assert "accept its terms" in gated
    assert "diffusion_pytorch_model.bin" in pickled
    assert "no config.json and no vae/config.json" in text
    assert "no unet/config.json" in unet
    assert "no text/config.json" in folder
    assert "org/vae at revision v3" in revision
    assert "no such revision" in revision
    assert not list(tmp_path.rglob("*.bin"))


def test_found_in_the_cache_offline(tmp_path: Path) -> None:
    fill_cache(tmp_path, "org/vae", FIRST, {CONFIG_FILE: CONFIG, WEIGHTS_FILE: WEIGHTS})
    fill_cache(
        tmp_path,
        "org/vae",
        SECOND,
        {CONFIG_FILE: CONFIG, WEIGHTS_FILE: WEIGHTS + b"!"},
        main=SECOND,
    )
    fill_cache(
        tmp_path, "org/pickled", FIRST, {CONFIG_FILE: CONFIG, "model.bin": b"pickled"}, main=FIRST
    )
    fill_cache(tmp_path, "org/pipeline", FIRST, REPOSITORIES["org/pipeline"][FIRST], main=FIRST)
    fill_cache(tmp_path, "org/half", FIRST, REPOSITORIES["org/half"][FIRST], main=FIRST)
    names = [("org/vae", None), ("org/vae", FIRST), ("org/pipeline", None), ("org/half", None)]
    problems = [
        ("org/vae", "v2"),
        ("org/vae", "3" * 40),
        ("org/missing", None),
        ("org/pickled", None),
    ]
    results = look_up(tmp_path, *names, *problems, HF_HUB_OFFLINE="1")
    *found, tag, commit, missing, pickled = results
    assert [result[:2] for result in found] == [
        ["org/vae", SECOND],
        ["org/vae", FIRST],
        ["org/pipeline:vae", FIRST],
        ["org/half", FIRST],
    ]
    for told, label in (
        (tag, "org/vae at revision v2"),
        (commit, "3" * 40),
        (missing, "org/missing"),
    ):
        assert label in told
        assert f"not in the cache {tmp_path / 'hub'}, and HF_HUB_OFFLINE is set" in told
    assert "pickled weights (model.bin)" in pickled
    assert "HF_HUB_OFFLINE" in pickled


def test_without_a_network_the_cache_serves(tmp_path: Path) -> None:
    fill_cache(tmp_path, "org/vae", FIRST, {CONFIG_FILE: CONFIG, WEIGHTS_FILE: WEIGHTS}, main=FIRST)
    nowhere = "http://127.0.0.1:9"
    found, missing = look_up(
        tmp_path, ("org/vae", None), ("org/missing", None), HF_ENDPOINT=nowhere
    )
    assert found[1] == FIRST
    assert f"the hub at {nowhere} gave no answer" in missing
    assert "`--vae embedded` and `--vae none` of preprocess need no network" in missing


def test_a_hub_that_is_not_there_is_asked_once_and_quietly(tmp_path: Path) -> None:
    """Where the client alone would sleep between six attempts and tell of each."""
    program = LOOK_UP.replace("time.sleep = lambda seconds: None", "time.sleep = None")
    names = [("org/vae", None), ("org/half", None), ("org/vae:a/b", FIRST)]
    # the weights are still to come
    fill_cache(tmp_path, "org/half", FIRST, {CONFIG_FILE: CONFIG}, main=FIRST)
    done = run_python(program, names, tmp_path, HF_ENDPOINT="http://127.0.0.1:9")
    assert (done.returncode, done.stderr) == (0, "")
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(told) == 3
    assert all("gave no answer" in line for line in told)


COMMAND = """
import json, sys
from flowtrain.cli import main
try:
    main(["preprocess", *json.loads(sys.argv[1])])
except SystemExit as end:
    print(json.dumps([end.code, "jax" in sys.modules]))
"""


def preprocess(
    home: Path, arguments: list[str], **environment: str
) -> tuple[dict[str, Any], int, bool]:
    """Result of `flowtrain preprocess --json ARGUMENTS`, its exit status, and whether JAX was
    imported.
    """
    done = run_python(COMMAND, [*arguments, "--json"], home, **environment)
    *result, (status, jax) = [json.loads(line) for line in done.stdout.splitlines()]
    return (result[0] if result else {"error": done.stderr}), status, jax


def test_preprocess_by_hub_id(hub: Hub, photos: Path, tmp_path: Path) -> None:
    """Planned by a tag, encoded by the commit it stood for, and found finished without a hub and
    without JAX.
    """
    arguments = [
        str(photos),
        str(tmp_path / "out"),
        "--resolution",
        "16",
        "--min-psnr",
        "0",
        "--vae",
        "org/moved",
    ]
    made, status, _ = preprocess(
        tmp_path, [*arguments, "--vae-revision", "v1"], HF_ENDPOINT=hub.endpoint
    )
    assert (made.get("state"), status) == ("written", 0), made
    vae = read_manifest(tmp_path / "out").vae
    assert vae is not None
    assert (vae.id, vae.revision, vae.sha256) == ("org/moved", FIRST, content_tag(WEIGHTS))
    again = preprocess(tmp_path, [*arguments, "--vae-revision", FIRST], HF_HUB_OFFLINE="1")
    assert (again[0]["state"], again[0]["digest"], *again[1:]) == (
        "was finished already",
        made["digest"],
        0,
        False,
    )
    told, status, _ = preprocess(
        tmp_path, [*arguments, "--vae-revision", "v3"], HF_ENDPOINT=hub.endpoint
    )
    assert status == 2
    assert "org/moved at revision v3" in told["error"]
    assert told["error"].count("\n") == 1
