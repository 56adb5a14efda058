"""Killed with SIGKILL at moments of chance, repeated: the same bytes as a run that nobody
disturbed.
"""

import functools
import glob
import json
import os
import random
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from schemas.manifest import MANIFEST_NAME, parse_manifest
from tests.forked import Command, kill, session, start_preprocess
from tests.pipelines.running import contents, objects, run
from tests.pipelines.servers import DROP, PASS, Store

SHARDS = 12
PROCESSES = ("--", "--direct_running_mode=multi_processing", "--direct_num_workers=2")
# What a run leaves one after the other; `done` and `staging` come again with every shard.
MOMENTS = (
    "settings.json",
    ".work/*/index.jsonl",
    ".work/staging/*/*-train.*-00000-*",
    ".work/staging/*/*-train_flip.*-00007-*",
    ".work/*/done/00003.json",
    ".work/*/done/00008.json",
    "*-00005-*",
    "rejects.jsonl",
    "dataset_info.json",
    "manifest.json",
)


def settings(tiny_vae: Path | str) -> list[object]:
    return [
        "--resolution",
        16,
        "--shards",
        SHARDS,
        "--batch-size",
        4,
        "--vae",
        tiny_vae,
        "--min-psnr",
        0,
        "--flips",
    ]


def wait_until(happened: Callable[[], bool], command: Command) -> None:
    """Look again and again, until it has happened or the command has ended."""
    deadline = time.monotonic() + 120
    while not happened() and command.running():
        assert time.monotonic() < deadline, command.text()
        time.sleep(0.001)


def kill_at(command: Command, happened: Callable[[], bool], delay: float = 0.0) -> int:
    """Its exit status, -9 when it was killed before it had ended."""
    wait_until(happened, command)
    time.sleep(delay)
    kill(command.pid)
    return command.wait()


def there(out: Path, pattern: str) -> set[str]:
    """Files of a pattern. Unlike `Path.glob` this bears folders that vanish while it looks."""
    return {*glob.glob(pattern, root_dir=out)}  # noqa: PTH207


def news(out: Path, pattern: str) -> Callable[[], bool]:
    """Tells when a file of a pattern is there that is not there now."""
    before = there(out, pattern)
    return lambda: not before >= there(out, pattern)


def check_promise(out: Path) -> None:
    """A manifest stands for a dataset that is whole, at any moment."""
    if (out / MANIFEST_NAME).exists():
        manifest = parse_manifest((out / MANIFEST_NAME).read_bytes(), "")
        for file in (*manifest.shards, *manifest.files):
            assert (out / file.name).stat().st_size == file.bytes


@pytest.mark.parametrize("vae", ["tiny", "none"])
def test_killed_in_this_process(photos: Path, tiny_vae: Path, tmp_path: Path, vae: str) -> None:
    """Four times each: when this or that file appears, or a while after the start."""
    arguments = settings(tiny_vae if vae == "tiny" else "none")
    undisturbed, out = tmp_path / "undisturbed", tmp_path / "out"
    begin = time.monotonic()
    assert start_preprocess(photos, undisturbed, *arguments).wait() == 0
    duration = time.monotonic() - begin
    expected = contents(undisturbed)
    chance = random.Random(len(vae))
    kills = attempts = 0
    while kills < 4:
        attempts += 1
        assert attempts < 60, "it is always done before it is killed"
        happened, delay = news(out, chance.choice(MOMENTS)), chance.uniform(0, 0.02)
        if chance.random() < 0.3:
            happened, delay = (lambda: True), chance.uniform(0, duration)
        command = start_preprocess(photos, out, *arguments)
        status = kill_at(command, happened, delay)
        check_promise(out)
        kills += status == -signal.SIGKILL
        if status != -signal.SIGKILL:
            assert status == 0, command.text()
            assert contents(out) == expected
            out = tmp_path / f"out{attempts}"
    assert start_preprocess(photos, out, *arguments).wait() == 0
    assert contents(out) == expected


def test_killed_with_several_processes(photos: Path, tmp_path: Path) -> None:
    """The command alone, one of its workers, or all of them. No worker outlives its command."""
    arguments = [
        "--resolution",
        160,
        "--shards",
        SHARDS,
        "--batch-size",
        4,
        "--vae",
        "none",
        "--flips",
    ]
    undisturbed, out = tmp_path / "undisturbed", tmp_path / "out"
    assert run(photos, undisturbed, *arguments).exit_code == 0
    chance = random.Random(1)
    for victims, done in (("command", 0), ("worker", 1), ("all", 3), ("command", 6)):
        command = start_preprocess(photos, out, *arguments, *PROCESSES)
        wait_until(functools.partial(begun, command, out, done), command)
        time.sleep(chance.uniform(0, 0.05))
        workers = [process for process in session(command.pid) if process != command.pid]
        assert len(workers) == 2
        chosen = {"command": [command.pid], "worker": workers[:1], "all": [command.pid, *workers]}[
            victims
        ]
        kill(*chosen)
        status = command.wait()
        if victims == "worker":
            assert status == 2
            assert "a worker process died" in command.text()
        else:
            assert status == -signal.SIGKILL
        deadline = time.monotonic() + 20
        while session(command.pid) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert session(command.pid) == []
        check_promise(out)
    assert run(photos, out, *arguments).exit_code == 0
    assert contents(out) == contents(undisturbed)


def begun(command: Command, out: Path, done: int) -> bool:
    """Whether both workers have been started, and so many shards are done."""
    return len(there(out, ".work/*/done/[0-9]*.json")) >= done and len(session(command.pid)) == 3


def hold(reached: threading.Event, at: int, then: str, number: int, method: str, path: str) -> str:
    """Tells when request `at` comes, and gives whoever waits for that the time to kill; later the
    store may see it.
    """
    if number != at:
        return PASS
    reached.set()
    time.sleep(0.1)
    return then


def test_killed_on_an_object_store(photos: Path, tmp_path: Path, s3_store: Store) -> None:
    """Eight times, at a request of chance, before the store has seen it or after. Nothing is left,
    here or there.
    """
    arguments = ["--resolution", 16, "--shards", 6, "--batch-size", 4, "--vae", "none"]
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    environment = {**s3_store.environment, "TMPDIR": str(temporary)}
    assert run(photos, tmp_path / "undisturbed", *arguments).exit_code == 0
    expected = contents(tmp_path / "undisturbed")
    proxy, chance = s3_store.proxy, random.Random(2)
    proxy.reset()
    url = f"{s3_store.url}/undisturbed"
    assert start_preprocess(photos, url, *arguments, **environment).wait() == 0
    requests = len(proxy.log)
    url, kills, attempts = f"{s3_store.url}/killed", 0, 0
    while kills < 8:
        attempts += 1
        assert attempts < 40, "it is always done before it is killed"
        reached = threading.Event()
        proxy.reset(
            functools.partial(
                hold, reached, chance.randrange(1, requests), chance.choice((PASS, DROP))
            )
        )
        command = start_preprocess(photos, url, *arguments, **environment)
        status = kill_at(command, reached.is_set)
        proxy.reset()
        kills += status == -signal.SIGKILL
        if status != -signal.SIGKILL:
            assert status == 0, command.text()
            assert objects(url) == expected
            url = f"{s3_store.url}/killed{attempts}"
    assert start_preprocess(photos, url, *arguments, **environment).wait() == 0
    assert objects(url) == expected
    assert list(temporary.glob("flowtrain-*")) == []  # Beam leaves empty folders of its own


@pytest.mark.parametrize("size", ["4k", "12k", "40k", "100k", "300k"])
def test_disk_that_fills_up_is_one_line_and_the_run_goes_on_with_more_room(
    photos: Path, tmp_path: Path, small_disk: Callable[[str], Path], size: str
) -> None:
    arguments = ["--resolution", 16, "--shards", 4, "--batch-size", 8, "--vae", "none"]
    out = small_disk(f"size={size}") / "out"
    result = run(photos, out, *arguments)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert f"cannot write {out} (" in line
    assert "No space left on device); make room and repeat the command" in line
    small_disk("size=8m")
    assert run(photos, out, *arguments).exit_code == 0
    assert run(photos, tmp_path / "undisturbed", *arguments).exit_code == 0
    assert contents(out) == contents(tmp_path / "undisturbed")


@pytest.mark.parametrize(  # a file may have so many KiB: no index (4 KiB), no shard (64)
    ("limit", "left"), [(2, ["settings.json"]), (50, ["index.jsonl", "settings.json"])]
)
def test_file_that_cannot_grow_is_one_line_and_the_run_goes_on_later(
    photos: Path, tmp_path: Path, limit: int, left: list[str]
) -> None:
    arguments = [photos, tmp_path / "out", "--resolution", 16, "--shards", 2, "--vae", "none"]
    command = shlex.join(
        [sys.executable, "-m", "flowtrain.cli", "preprocess", *map(str, arguments)]
    )
    limited = subprocess.run(
        ["bash", "-c", f"ulimit -f {limit} && exec {command}"],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert limited.returncode == 2, limited.stderr
    (line,) = limited.stderr.splitlines()
    assert "cannot write" in line
    assert "repeat the command" in line
    assert sorted(Path(name).name for name in contents(tmp_path / "out") if "json" in name) == left
    assert run(*arguments).exit_code == 0


def test_second_command_at_once_is_refused_and_an_interrupt_is_one_line(
    photos: Path, tiny_vae: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = start_preprocess(photos, out, *settings(tiny_vae))
    wait_until(lambda: bool(there(out, ".work/*/done/[0-9]*.json")), command)
    os.kill(command.pid, signal.SIGSTOP)
    try:
        result = run(photos, out, *settings(tiny_vae))
    finally:
        os.kill(command.pid, signal.SIGINT)
        os.kill(command.pid, signal.SIGCONT)
    assert command.wait() == 130
    assert result.exit_code == 2
    assert "another command is writing" in result.stderr
    assert command.text().strip() == "Interrupted; repeat the command to go on."
    assert run(photos, out, *settings(tiny_vae)).exit_code == 0


def test_an_index_that_was_damaged_meanwhile_is_not_believed(
    photos: Path, tiny_vae: Path, tmp_path: Path
) -> None:
    """One changed digit gives a record another class, which no checksum would tell."""
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert run(photos, whole, *settings(tiny_vae)).exit_code == 0
    command = start_preprocess(photos, out, *settings(tiny_vae))
    assert kill_at(command, lambda: bool(there(out, ".work/*/done/[0-9]*.json"))) == -9
    (index,) = out.glob(".work/*/index.jsonl")
    lines = index.read_text().splitlines(keepends=True)
    key, label, size, place = json.loads(lines[-1])
    lines[-1] = json.dumps([key, (label + 1) % 3, size, place]) + "\n"
    index.write_text("".join(lines))
    assert run(photos, out, *settings(tiny_vae)).exit_code == 0
    assert contents(out) == contents(whole)
