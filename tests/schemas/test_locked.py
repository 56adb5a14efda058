"""One at a time, waiting for the other; a killed holder is no holder."""

import errno
import fcntl
import logging
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from schemas.locked import Lock, ask_for_lock, locked

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


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_storage_without_flock_has_the_locks_of_posix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def unknown(handle: int, mode: int) -> None:
        raise OSError(number, os.strerror(number))

    program = (
        "import errno, fcntl, os, sys\n"
        "def unknown(handle, mode): raise OSError(int(sys.argv[2]), 'unknown')\n"
        "fcntl.flock = unknown\n"
    )
    path = tmp_path / "lock"
    holder = subprocess.Popen(
        [sys.executable, "-c", program + HOLD, path, str(number)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    monkeypatch.setattr(fcntl, "flock", unknown)
    handle = os.open(path, os.O_RDWR)
    assert ask_for_lock(handle, path) is Lock.BUSY
    holder.kill()
    holder.communicate()
    assert ask_for_lock(handle, path, wait=True) is Lock.HELD
    os.close(handle)


def test_storage_without_any_lock_is_told_once_and_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unknown(handle: int, mode: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unknown)
    monkeypatch.setattr(fcntl, "lockf", unknown)
    with locked(tmp_path / "lock"):
        pass
    assert [record.getMessage() for record in caplog.records] == [
        f"the storage of {tmp_path} has no locks; see that no other command works there"
    ]


def test_what_else_goes_wrong_with_a_lock_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(handle: int, mode: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", broken)
    with pytest.raises(OSError, match="Input/output"), locked(tmp_path / "lock"):
        pass
