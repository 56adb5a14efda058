"""One at a time, waiting for the other; a killed holder is no holder."""

import logging
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from schemas.locked import locked

HOLD = "import sys; from pathlib import Path; from schemas.locked import locked\n"
HOLD += "with locked(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"


def test_waits_for_the_holder_and_says_so_and_a_killed_one_lets_go(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "new" / "lock"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    assert holder.stdin is not None
    assert holder.stdout.readline() == b"held\n"
    entered = threading.Event()

    def enter() -> None:
        with locked(path):
            entered.set()

    with caplog.at_level(logging.WARNING):
        thread = threading.Thread(target=enter)
        thread.start()
        assert not entered.wait(0.3)
        holder.send_signal(signal.SIGKILL)
        assert entered.wait(10)
        thread.join()
    holder.communicate()
    assert [record.getMessage() for record in caplog.records] == [
        f"waiting for another command that is at work in {path.parent}"
    ]
    caplog.clear()
    with locked(path):
        assert caplog.records == []
