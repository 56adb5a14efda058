"""Killed with SIGKILL at moments of chance, repeated: the same bytes as a run that nobody disturbed."""

import random
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from schemas.manifest import MANIFEST_NAME
from tests.pipelines.running import contents, run, start

SHARDS = 12


def settings(tiny_vae: Path) -> list[object]:
    return ["--resolution", 16, "--shards", SHARDS, "--batch-size", 4, "--vae", tiny_vae, "--min-psnr", 0, "--flips"]


def wait_for(process: subprocess.Popen[str], out: Path, done: int) -> None:
    """Until the settings are there (done = 0), or so many shards are."""
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        markers = list((out / ".work/done").glob("[0-9]*.json"))
        if (out / "settings.json").exists() and len(markers) >= done:
            return
        time.sleep(0.005)
    raise AssertionError(f"ended early: {process.communicate()}")


def test_killed_runs_give_the_bytes_of_an_undisturbed_one(photos: Path, tiny_vae: Path, tmp_path: Path) -> None:
    arguments = settings(tiny_vae)
    undisturbed, out = tmp_path / "undisturbed", tmp_path / "out"
    assert run(photos, undisturbed, *arguments).exit_code == 0
    chance = random.Random(0)
    for done in (0, 2, SHARDS - 3):
        process = start(photos, out, *arguments)
        wait_for(process, out, done)
        time.sleep(chance.uniform(0, 0.02))
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert not (out / MANIFEST_NAME).exists()
    process = start(photos, out, *arguments)
    text = process.communicate(timeout=240)
    assert process.returncode == 0, text
    assert contents(out) == contents(undisturbed)


@pytest.mark.parametrize(  # a file may have so many KiB: no settings, no index (4 KiB), no shard (64)
    ("limit", "left"), [(0, []), (2, ["settings.json"]), (50, [".work/index.jsonl", "settings.json"])]
)
def test_full_disk_is_one_line_and_the_run_goes_on_later(
    photos: Path, tmp_path: Path, limit: int, left: list[str]
) -> None:
    arguments = [photos, tmp_path / "out", "--resolution", 16, "--shards", 2, "--vae", "none"]
    command = shlex.join([sys.executable, "-m", "flowtrain.cli", "preprocess", *map(str, arguments)])
    limited = subprocess.run(
        ["bash", "-c", f"ulimit -f {limit} && exec {command}"], capture_output=True, text=True, timeout=240
    )
    assert limited.returncode == 2, limited.stderr
    (line,) = limited.stderr.splitlines()
    assert "cannot write" in line
    assert "repeat the command" in line
    assert sorted(name for name in contents(tmp_path / "out") if "json" in name and "tmp" not in name) == left
    assert run(*arguments).exit_code == 0


def test_second_command_at_once_is_refused_and_an_interrupt_is_one_line(
    photos: Path, tiny_vae: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    process = start(photos, out, *settings(tiny_vae))
    wait_for(process, out, 1)
    process.send_signal(signal.SIGSTOP)  # so that it does not finish meanwhile
    try:
        result = run(photos, out, *settings(tiny_vae))
    finally:
        process.send_signal(signal.SIGCONT)
    assert result.exit_code == 2
    assert "another command is writing" in result.stderr
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.strip() == "Interrupted; repeat the command to go on."
    assert run(photos, out, *settings(tiny_vae)).exit_code == 0
