"""Killed with SIGKILL at moments of chance, repeated: the same bytes as a run that nobody disturbed."""

import os
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


def stop_at(process: subprocess.Popen[str], out: Path, done: int, delay: float = 0.0) -> None:
    """SIGSTOP when the settings are there (done = 0), or so many shards are, and `delay` seconds have passed.

    On a fast machine it may have finished by then. What is seen afterwards does not move.
    """
    deadline = time.monotonic() + 120
    while process.poll() is None:
        assert time.monotonic() < deadline
        markers = list((out / ".work").glob("*/done/[0-9]*.json"))
        if (out / "settings.json").exists() and len(markers) >= done:
            time.sleep(delay)
            process.send_signal(signal.SIGSTOP)
            if process.poll() is None:
                os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
            return
        time.sleep(0.005)
    if process.returncode:
        raise AssertionError(f"ended early: {process.communicate()}")


def test_killed_runs_give_the_bytes_of_an_undisturbed_one(photos: Path, tiny_vae: Path, tmp_path: Path) -> None:
    arguments = settings(tiny_vae)
    undisturbed, out = tmp_path / "undisturbed", tmp_path / "out"
    assert run(photos, undisturbed, *arguments).exit_code == 0
    chance = random.Random(0)
    half_made = 0
    for done in (0, 2, SHARDS - 3):
        process = start(photos, out, *arguments)
        stop_at(process, out, done, chance.uniform(0, 0.02))
        half_made += not (out / MANIFEST_NAME).exists()
        process.kill()
        process.communicate()
    assert half_made
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
    stop_at(process, out, 1)
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
