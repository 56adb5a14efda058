"""A worker process ends with the process that began it; with Beam in test_restart."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

WATCH = "from pipelines.runners.worker import _end_with; _end_with({})"
# A command that begins a worker, tells its process id and waits.
COMMAND = f"""
import os, subprocess, sys, time
watch = {WATCH!r}.format(os.getpid())
print(subprocess.Popen([sys.executable, "-S", "-c", watch]).pid, flush=True)
time.sleep(60)
"""


def running(pid: int) -> bool:
    """Whether a process is there, and not only its status, which nobody may ask for."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="processes are looked up in /proc")
def test_a_worker_ends_when_its_command_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-S", "-c", COMMAND], stdout=subprocess.PIPE) as command:
        assert command.stdout is not None
        worker = int(command.stdout.readline())
        time.sleep(1)  # twice the time after which a worker looks
        assert running(worker), "as long as the command is there"
        command.send_signal(signal.SIGKILL)
        command.wait()
        deadline = time.monotonic() + 30
        while running(worker) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not running(worker)


def test_a_worker_that_was_still_starting_when_its_command_ended_ends_at_once() -> None:
    """Its parent is another process by then."""
    code = WATCH.format(os.getppid())
    done = subprocess.run([sys.executable, "-S", "-c", code], timeout=60, check=False)
    assert done.returncode == 1
