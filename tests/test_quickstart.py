"""The whole road, short: the quickstart's own commands, killed on the way, against a run that was
left alone.
"""

import glob
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from flowtrain.state.checkpoint import load_for_sampling

STEPS = 24
SETTINGS = [
    "--num-samples",
    "80",
    "--set",
    f"train.steps={STEPS}",
    "--set",
    "train.checkpoint_every=6",
]
SETTINGS += ["--set", "train.keep=100"]  # or a fast machine would delete step 6 before it is seen
SETTINGS += ["--set", "model.depth=1", "--set", "model.width=32", "--set", "model.heads=2"]


def start(out: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "flowtrain.cli", "quickstart", str(out), *SETTINGS]
    return subprocess.Popen(
        command, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def finish(process: subprocess.Popen[bytes]) -> str:
    output, _ = process.communicate(timeout=500)
    assert process.returncode == 0, output.decode()[-3000:]
    return output.decode()


def kill(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL to the command and to the stage that it runs."""
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def wait_for(folder: Path, pattern: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 240
    while not glob.glob(pattern, root_dir=folder):  # noqa: PTH207 (bears folders that vanish while it looks)
        assert process.poll() is None, f"the quickstart ended before it made {pattern}"
        assert time.monotonic() < deadline, f"no {pattern}"
        time.sleep(0.02)


def digests(directory: Path) -> dict[str, str]:
    files = (path for path in sorted(directory.rglob("*")) if path.is_file())
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("undisturbed")
    return out, finish(start(out))


def test_ends_with_a_table_and_a_page(undisturbed):
    out, output = undisturbed
    results = [
        json.loads(line) for line in (out / "run" / "results.jsonl").read_text().splitlines()
    ]
    settings = {(result["steps"], result["cfg"]) for result in results}
    assert settings == {(steps, cfg) for steps in (100, 20, 5, 1) for cfg in (1.0, 4.0)}
    assert all(np.isfinite(result["fd"]) and result["fd"] > 0 for result in results)
    assert "FD(embedded)" in output
    assert not re.search(r"\bFID\b", output), (
        "a distance in embedded features must not be called FID"
    )
    page = (out / "run" / "report.html").read_text()
    assert not re.search(r"""(src|href)=["']https?://""", page), "the page must be self-contained"
    assert "data:image/png" in page


def test_repeating_the_finished_quickstart_changes_nothing(undisturbed):
    out, _ = undisturbed
    kept = [out / "latents", out / "run" / "checkpoints", out / "run" / "samples"]
    before = [digests(directory) for directory in kept]
    results = (out / "run" / "results.jsonl").read_bytes()
    finish(start(out))
    assert [digests(directory) for directory in kept] == before
    assert (out / "run" / "results.jsonl").read_bytes() == results


def test_sigkill_in_preprocess_and_train_leaves_no_trace(undisturbed, tmp_path):
    out, _ = undisturbed
    latents, run = tmp_path / "latents", tmp_path / "run"
    for seen in ("settings.json", ".work/*/done/00001.json"):  # as it begins; in the middle
        process = start(tmp_path)
        wait_for(latents, seen, process)
        kill(process)
        assert not (latents / "manifest.json").exists()
    for seen in ("checkpoints", "checkpoints/6"):  # before or while the first is saved; after it
        process = start(tmp_path)
        wait_for(run, seen, process)
        kill(process)
    finish(start(tmp_path))

    assert digests(tmp_path / "latents") == digests(out / "latents")
    for weights in ("ema", "params"):
        a, b = (
            load_for_sampling(directory / "run", weights=weights) for directory in (out, tmp_path)
        )
        assert a.step == b.step == STEPS
        jax.tree.map(np.testing.assert_array_equal, a.params, b.params)
    assert digests(tmp_path / "run" / "samples") == digests(out / "run" / "samples")
